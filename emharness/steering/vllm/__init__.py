"""Where stock vLLM is patched: admission, the prefix cache, the runners of steps, what comes back, a route."""
