"""A small Llama with fresh weights."""

from typing import TYPE_CHECKING

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from trainers.tiny.pretrain import Config


def new_model(config: "Config", tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of the configured shape, embeddings tied, with weights drawn from torch's own generator.


    Eager attention: on rows this short it trains about twice as fast as SDPA on a CPU.
    """
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        attn_implementation="eager",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(shape)
