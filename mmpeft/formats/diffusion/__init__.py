"""Files of diffusion models: LoRA of diffusers, kohya and ComfyUI, ControlNet, IP-Adapter, Custom Diffusion ..."""
