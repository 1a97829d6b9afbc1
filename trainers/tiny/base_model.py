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
    """A Llama of this shape for this tokenizer, embeddings tied, weights drawn from torch's generator."""
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        attn_implementation=attention,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(shape)
