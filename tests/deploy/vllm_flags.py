"""vLLM's own command line, which knows whether a flag exists. Loading it takes seconds: for slow tests."""

import argparse
from collections.abc import Sequence


def parse_server(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of `python -m vllm.entrypoints.openai.api_server`, and of `vllm serve` behind the model.

    Raises SystemExit where one of them is wrong."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(list(arguments))
    validate_parsed_serve_args(options)
    return options
