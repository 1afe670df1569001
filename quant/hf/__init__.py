"""Every architecture that transformers knows and the lean path does not, in 4 bits by bitsandbytes and peft."""
