"""Is steering right here? Stock vLLM, steered vLLM and Hugging Face, asked the same."""
