"""From run logs to laws: the solver, its result, intervals, comparison, and the next runs to make."""
