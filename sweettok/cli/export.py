"""sweettok export: models for other programs."""

from __future__ import annotations

import argparse

from sweettok.cli.main import Command
from sweettok.cli.options import add_checkpoint
from sweettok.generator.model import Generator
from sweettok.store import check_output_folder
from sweettok.tokenizer.model import SweetTok


def _transformers_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "the generator")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that AutoModelForCausalLM loads")


def _transformers(args: argparse.Namespace) -> None:
    check_output_folder(args.out, inputs=(args.checkpoint,))
    generator = Generator.from_pretrained(args.checkpoint)
    generator.to_transformers(args.out)
    remote = "; load it with trust_remote_code=True" if generator.config.qk_norm else ""
    print(f"{args.out}: a model of transformers{remote}")


def _torch_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of encode.pt2 and decode.pt2")


def _torch(args: argparse.Namespace) -> None:
    check_output_folder(args.out, inputs=(args.checkpoint,))
    files = SweetTok.from_pretrained(args.checkpoint).export(args.out)
    print("\n".join(map(str, files)))


COMMANDS = {
    "transformers": Command("write a generator as a model of transformers", _transformers_arguments, _transformers),
    "torch": Command("write encode and decode as packages of torch.export", _torch_arguments, _torch),
}
