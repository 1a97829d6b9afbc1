"""The built-in small world: its text generator, its gold reward, its tokenizer and its pre-training."""
