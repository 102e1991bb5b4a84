"""A tokenizer's own chat template as a template of this project (--prompt_template_name chat).

It is rendered once, by transformers, which runs Jinja in a sandbox; words stand there in place of the record. What
comes out is text around the record, so that prompts are made, cut and cached as with every other template, and are
the same that `apply_chat_template` makes.
"""

from dataclasses import replace

from common.errors import UserError, say
from tokens.codec import Codec, find_specials

FLAG = "--prompt_template_name chat"
ASKED, ANSWERED = "Zq7asked7qZ", "Zq7answered7qZ"  # stand for the record
BLANKS = " \n \n "  # around them; a template may take them off
DAY = "26 Jul 2024"  # what Llama 3's templates show where no day is given: the same prompt on every day


def read_chat_template(tokenizer, system: str | None, where: str) -> dict:
    """The template that shows instruction and text as a user's message, thinking switched off where there is a switch.

    `system`: the system's line, None: what the template itself puts there; `where`: the tokenizer's folder. Beside the
    two prompts it has: trims and trims_answer, whether blanks around the message and the answer are taken off;
    answer_lead and answer_tail, what stands between the prompt and the answer, and between it and its end; answer_end,
    the token that ends it, None: the tokenizer's end of text. UserError where the tokenizer has no chat template, or
    one that does more to a message than this.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{FLAG}: the tokenizer of {where} has no chat template; give another, such as alpaca or plain")

    def render(asked: str, answered: str | None = None) -> str:
        return _render(tokenizer, system, asked, answered, where)

    prompt, whole = render(ASKED), render(ASKED, ANSWERED)
    if prompt.count(ASKED) != 1 or whole.count(ANSWERED) != 1 or "{instruction}" in prompt or "{input}" in prompt:
        raise UserError(
            f"{FLAG}: the template of {where} does not show a message once, as it is; give another template"
        )
    trims = _is_trimmed(prompt, ASKED, render(BLANKS + ASKED + BLANKS), where)
    trims_answer = _is_trimmed(whole, ANSWERED, render(ASKED, BLANKS + ANSWERED + BLANKS), where)
    before, _, behind = whole.partition(ANSWERED)
    end = _first_special(tokenizer, behind)
    before_prompt, _, behind_prompt = prompt.partition(ASKED)
    return {
        "description": "The tokenizer's own chat template.",  # no path: runs are told apart by what stands here
        "prompt_input": f"{before_prompt}{{instruction}}\n{{input}}{behind_prompt}",
        "prompt_no_input": f"{before_prompt}{{instruction}}{behind_prompt}",
        "chat": True,
        "system": system,
        "trims": trims,
        "trims_answer": trims_answer,
        "answer_lead": before[len(prompt) :] if before.startswith(prompt) else "",
        "answer_tail": behind[: behind.index(end)] if end else "",
        "answer_end": end,
    }


def fit_codec(codec: Codec, template: dict) -> Codec:
    """The codec that encodes what `read_chat_template` made: the template's special tokens, none of the tokenizer's
    own in front, and the end of an answer that the template has.
    """
    specials, end = codec.specials | _specials(codec.tokenizer), template.get("answer_end")
    eos = codec.eos_id if end is None else codec.tokenizer.convert_tokens_to_ids(end)
    if end is not None and codec.tokenizer.convert_ids_to_tokens(eos) != end:
        raise UserError(f"{FLAG}: the tokenizer has no token {end}, with which the template ends an answer")
    return replace(codec, prefix_ids=(), eos_id=eos, specials=specials, whole=True)


def check_chat(template: dict, where: str) -> dict:
    """A template that run.json has kept; UserError, which begins with `where`, for one that is none."""
    texts = all(isinstance(template.get(name), str) for name in ("answer_lead", "answer_tail"))
    if not texts or not isinstance(template.get("answer_end"), str | None) or template.get("chat") is not True:
        raise UserError(f"{where}: template is no chat template as it is written there; give {FLAG} to read it anew")
    return template


def choose_chat(template: dict, system: str | None, codec: Codec, where: str) -> tuple[dict, Codec]:
    """The template and the codec that go together; `template`: kept in run.json, or of no prompt: read from the
    tokenizer, as it is with another `system` than it was kept with.
    """
    if "prompt_input" not in template or (system is not None and system != template.get("system")):
        if "prompt_input" in template:
            say("warning: --chat_system differs from run.json's; using it")
        template = read_chat_template(codec.tokenizer, system, where)
    return template, fit_codec(codec, check_chat(template, "run.json"))


def _render(tokenizer, system: str | None, asked: str, answered: str | None, where: str) -> str:
    """A conversation as text: with `answered` whole, else as far as the assistant's turn begins."""
    said = [("system", system), ("user", asked), ("assistant", answered)]
    messages = [{"role": role, "content": text} for role, text in said if text is not None]
    try:
        jinja = tokenizer.get_chat_template()
        switches = {"enable_thinking": False, "date_string": DAY}
        given = {name: value for name, value in switches.items() if name in jinja}
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answered is None, **given)
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        advice = "drop --chat_system, which it may not take" if system is not None else "give another template"
        raise UserError(f"{FLAG}: the template of {where} fails ({error}); {advice}") from None


def _is_trimmed(plain: str, word: str, blank: str, where: str) -> bool:
    """Whether the blanks around a message are gone; UserError where neither all nor none are."""
    if blank == plain:
        return True
    if blank == plain.replace(word, BLANKS + word + BLANKS):
        return False
    raise UserError(f"{FLAG}: the template of {where} changes the blanks of a message; give another template")


def _specials(tokenizer) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _first_special(tokenizer, text: str) -> str | None:
    """The token that ends an answer: the first special one of what follows it, else the first that was added."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    for names in (_specials(tokenizer), added):
        found = find_specials(tuple(names)).search(text) if names else None
        if found:
            return found[0]
    return None
