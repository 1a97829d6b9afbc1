"""A small Llama with fresh weights."""

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def new_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    max_length: int,
    attention: str,
) -> LlamaForCausalLM:
    """A Llama of this shape for this tokenizer, embeddings tied, weights drawn from torch's generator.

    Their standard deviation is 1/sqrt(hidden_size), so that a layer keeps the size of what goes through it.
    transformers' 0.02 is that of a width of 2,500; at 256 the heads that look back for what was said did not
    form within the demo's pre-training.
    """
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=max_length,
        initializer_range=hidden_size**-0.5,
        tie_word_embeddings=True,
        attn_implementation=attention,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(shape)
