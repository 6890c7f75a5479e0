"""The same on a GPU: a programme for each request, in buffers that never move, read by one kernel."""
