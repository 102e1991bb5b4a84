"""The tokens that an adapter or a model has beyond its base's: a text file beside its weights, one token a line."""

from pathlib import Path

from common.errors import UserError
from common.files import write_lines

NAME = "extended_vocab.txt"
MOST = 2**16  # tokens of one file


def read_tokens(file: str | Path) -> tuple[str, ...]:
    """The tokens of a file, in its order; lines without any are left out.

    UserError with file and line for one that is there twice, or has blanks at its ends.
    """
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a file of tokens, one a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    lines = {}
    for number, line in enumerate(text.split("\n"), 1):
        token = line.removesuffix("\r")
        if not token:
            continue
        if token != token.strip():
            raise UserError(f"{file} line {number}: {token[:60]!r} has blanks at its ends; take them away")
        if token in lines:
            raise UserError(f"{file} line {number}: {token[:60]!r} stands in line {lines[token]} too; drop one of them")
        lines[token] = number
    if not lines:
        raise UserError(f"{file}: holds no token; write one a line")
    if len(lines) > MOST:
        raise UserError(f"{file}: holds {len(lines)} tokens, expected {MOST} at most")
    return tuple(lines)


def tokens_beside(folder: str | Path | None) -> tuple[str, ...]:
    """The tokens that lie beside the weights of `folder`; none where there is no such file."""
    file = Path(folder or ".") / NAME
    return read_tokens(file) if folder and file.is_file() else ()


def write_tokens(folder: str | Path, tokens: tuple[str, ...]) -> None:
    """The file beside the weights of `folder`; none is written without tokens."""
    if tokens:
        write_lines(Path(folder) / NAME, tokens)
