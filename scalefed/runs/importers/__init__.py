"""How does another tool's record become a run log? One module a tool, each recognised by what its record looks like.

===================  ======================================================  ==========================
tool                 what is read                                            by
===================  ======================================================  ==========================
Flower               Result, History: the object, a dict of it, JSON; what   ``import_rounds``
                     either prints
Hugging Face         ``trainer_state.json``                                  ``import_rounds``, ``load_runs``
Lightning, pfl,      CSV or JSON lines with a column that counts rounds or   ``import_rounds``
FedML, anybody       steps, blanks between, one row a client where need be
TensorBoard          ``events.out.tfevents.*``, a file or a folder of them   ``import_rounds``, ``load_runs``
MLflow               ``search_runs``, a folder ``mlruns``, ``mlflow.db``     ``import_rounds``, ``load_runs``
Weights & Biases     runs of the API, its export as CSV, histories           ``import_rounds``, ``load_runs``
lm-eval              ``results_*.json``, a file or a folder of them          ``load_runs``
===================  ======================================================  ==========================
"""
