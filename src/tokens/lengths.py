"""How many tokens rows and prompts have by default. It imports no torch, so that flags are checked without."""

from common.errors import UserError

MAX_LEN, MAX_SRC_LEN = 768, 450  # of P-Tuning: tokens of question and answer, and of the question
TEXT_WINDOW = 768  # tokens of a prompt about a single text, where the base's context leaves more


def check_lengths(max_len: int | None, max_src_len: int | None) -> None:
    """UserError unless --max_src_len leaves room for an answer within --max_len; None: not given."""
    if max_len and max_src_len and max_len - max_src_len < 4:
        raise UserError(
            f"--max_len {max_len} and --max_src_len {max_src_len} leave no room for an answer; raise --max_len above "
            f"{max_src_len + 3}, or lower --max_src_len"
        )
