"""The way from a folder of documents to a file of triples and a graph: what src/extract.py does with its flags."""

import time
from collections import Counter
from contextlib import contextmanager
from functools import partial as with_arguments
from pathlib import Path

from common import manifest
from common.errors import UserError, keeping, say
from common.files import fingerprint, write_rows
from data.documents import read_documents, size_of
from data.sources import find_run, read_corpus
from kg import graph
from kg.store import check_store
from prediction import partial
from prediction.answered import check_made, read_made, recall
from prediction.corpus import Corpus, answer_corpus, answer_here, drop_parts, gather, is_whole, parts_folder
from prediction.opening import Opening, describe_plan, plan_adapter
from prediction.questions import choose_window
from prediction.settings import settings_of
from prediction.texts import Opened, Wanted, open_planned

SHOWN = 20  # documents that could not be read, which are named


def extract_corpus(model_args, args, wanted: tuple, started: float) -> None:
    """Answer all documents of `args.input` and write them to `args.output_file`; bring them into `args.store`.

    `args`: utils.args_extract.CorpusArguments; `wanted`: what its read_wanted gives.
    """
    if args.store:
        check_store(args.store)
    with open_workers(model_args, args) as (plan, answer_with, decided):
        most = choose_window(args.window, plan.context, plan.serving.rules.max_new_tokens)
        skipped = Counter()
        documents = with_arguments(read_documents, args.input, args.reading, skipped)
        corpus = Corpus(documents, size_of(args.input), args.output_file, Wanted(*wanted), most, args.shard_size)
        settings = corpus_settings(plan, corpus, args)
        with partial.hold_partial(args.output_file), keeping(lambda: kept(args.output_file)):
            made = read_made(args.output_file, args.overwrite_output_file)
            if is_whole(corpus, settings, made):
                say(f"{args.output_file}: whole already, of these documents and settings; nothing is asked again")
            else:
                partial.check_partial(args.output_file, settings)
                if partial.recorded_settings(args.output_file) is None:
                    if not args.overwrite_output_file:
                        check_made(args.output_file, settings, made)
                    drop_parts(args.output_file)  # of a run whose file was finished
                    partial.resume_partial(args.output_file, settings)
                with recall(args.output_file, settings, made, parts_folder(args.output_file)) as recalled:
                    digests = answer_corpus(corpus, answer_with(corpus), skipped, recalled)
                if not digests:
                    drop_all(args.output_file)
                    raise UserError(f"--input {args.input}: no document in it; {_say_skipped(skipped)}")
                write_output(plan, corpus, args, settings, decided(), digests, skipped, started)
            if args.store:
                build_graph(args.store, args.output_file)
            drop_all(args.output_file)


def drop_all(output: str) -> None:
    """Take away what an unfinished run keeps. What says that it is one goes first: the parts are then needless."""
    partial.partial_path(output).unlink(missing_ok=True)
    drop_parts(output)


@contextmanager
def open_workers(model_args, args):
    """(the plan, what makes of a corpus the function that answers its shards, what says all decisions until now): this
    process, or those of Ray.
    """
    if args.ray:
        from prediction.distributed import answer_spread, decided_by, join_cluster, plan_on_worker

        with join_cluster(args, model_args) as cluster:
            plan = plan_on_worker(cluster)
            yield plan, with_arguments(answer_spread, cluster), lambda: decided_by(cluster, plan)
        return
    plan, opened = plan_adapter(model_args, args), []

    def answer_with(corpus: Corpus):
        def open_here() -> Opened:
            opened.append(open_planned(plan, corpus.most))
            return opened[0]

        return answer_here(open_here, corpus)

    yield plan, answer_with, lambda: {**plan.decided, **(opened[0].decided if opened else {})}


def corpus_settings(plan: Opening, corpus: Corpus, args) -> dict:
    """What the rows depend on beside the documents, which shards are known by."""
    return {
        **settings_of(plan.serving, plan.template, None, corpus.most, plan.asking),
        "instructions": corpus.wanted.instructions,
        "topic_records": fingerprint(args.topic_records) if corpus.wanted.topics else None,
        "encoding": args.encoding,
        "text_field": args.text_field,
        "shard_size": args.shard_size,
        "documents": str(Path(args.input).resolve()),
    }


def kept(output: str) -> str:
    """What is left of a run that was broken off: see common.errors.keeping."""
    if partial.recorded_settings(output) is None:
        return "nothing was asked, and the same command begins anew"
    parts = sum(1 for _ in parts_folder(output).glob("*.jsonl"))
    return f"{parts} finished shards are kept in {parts_folder(output)}, and the same command goes on"


def write_output(
    plan: Opening, corpus: Corpus, args, settings: dict, decided: dict, digests: list, skipped: Counter, started: float
) -> None:
    """Write the file, and beside it how it was made; say what it holds."""
    counts, unread = Counter(), []

    def rows():
        for row in gather(corpus.output, len(digests), counts):
            if "reason" in row and len(unread) < SHOWN:
                unread.append(f"{row['id']}: {row['reason']}")
            yield row
        manifest.run_file_of(corpus.output).unlink(missing_ok=True)  # killed now, it would stand beside other rows

    write_rows(corpus.output, rows())
    busy = counts.pop("seconds")
    results = {**counts, "seconds_of_all_workers": round(busy, 1), "seconds": round(time.time() - started, 1)}
    run = describe_plan(plan, decided) | {"method": "extraction", "input": str(args.input), "results": results}
    run |= {"output": Path(corpus.output).name, "settings": settings, "shards": digests}
    run |= {"versions": manifest.versions()}
    manifest.write_run_of(corpus.output, run)
    for line in unread:
        say(f"not read: {line}")
    if counts["unread"] > len(unread):
        say(f"not read: {counts['unread'] - len(unread)} more")
    if skipped:
        say(_say_skipped(skipped))
    encodings = {name.removeprefix("encoding "): n for name, n in counts.items() if name.startswith("encoding ")}
    if encodings:
        say("encodings: " + ", ".join(f"{count} {name}" for name, count in sorted(encodings.items())))
    say(
        f"{corpus.output}: {counts['documents']} documents, {counts['unread']} not read, {counts['repeated']} with the "
        f"text of another; {counts['windows']} windows, {counts['error']} failed, {counts['length']} cut; "
        f"{counts['triples']} triples, {results['seconds']:.0f} s in all"
    )
    if counts["error"]:
        say("the windows that failed have a reason in the file; the same command asks about them again")


def _say_skipped(skipped: Counter) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(8))
    return f"skipped: {sum(skipped.values())} files of other kinds ({kinds})" if skipped else "it is empty"


def build_graph(store: str, output: str) -> None:
    """Bring the rows of a corpus into a graph; killed, the graph is as it was, and the same command builds it."""
    counts = graph.build(store, read_corpus(output), find_run(output), graph.usual_settings(), changed_texts=True)
    names = ("records", "triples", "added", "replaced", "unchanged")
    say(f"{store}: " + ", ".join(f"{counts[name]} {name}" for name in names))
