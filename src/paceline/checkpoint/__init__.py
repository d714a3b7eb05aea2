"""Files in and out: safetensors, Hugging Face configs and tensor names. Nothing else knows them."""
