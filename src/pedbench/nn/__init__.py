"""Neural building blocks: the CLIP backbone, its tokenizer and what plug-ins build on them."""
