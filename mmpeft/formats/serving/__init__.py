"""Files for engines that serve language models: vLLM, llama.cpp."""
