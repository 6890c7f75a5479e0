"""Generation: cells of the grid in, stored responses out; `engine` is the only module that starts vLLM."""
