"""QLoRA for one family of decoders, with as little memory as arithmetic allows."""
