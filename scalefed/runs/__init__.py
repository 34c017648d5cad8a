"""What did the runs measure? The run log: schema, files of a run, packed sweeps, tables of anybody's, importers."""
