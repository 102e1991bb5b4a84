"""A page and an API for one model: paste a text, pick relations, watch the graph grow.

python src/serve.py --lora_weights lora/quickstart-400
"""

import json
import os
import socket
import sys
from pathlib import Path

from common.errors import UserError, begin_script, run_script, say

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if __name__ == "__main__":
    begin_script()

from common.files import read_json
from common.locks import hold_file
from common.refusals import naming
from common.startup import quick_startup, without_compiler
from kg.store import check_store
from utils.args_serve import parse_serve

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
EXAMPLES = 4
LOCK = "server.lock"  # of --data_dir


def main(argv=None) -> None:
    model_args, args = parse_serve(argv)
    if args.store:
        check_store(args.store)
    with hold_data(args.data_dir):
        listening, server = open_server(model_args, args)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        print(f"{address}{'?token=' + args.token if args.token else ''}", flush=True)
        say("Ctrl-C stops it; jobs that are not finished go on when it is started again")
        server.run(sockets=[listening])


def hold_data(folder: str):
    """Keep the folder from other servers until the block ends: two would answer the same unfinished jobs. UserError
    where another has it, or where it cannot be made.
    """
    told = f"--data_dir {folder}"
    refusal = f"{told}: another server is using it; give another folder, or stop that server"
    return hold_file(Path(folder) / LOCK, told, refusal)


def open_server(model_args, args):
    """(the socket that is listened at, uvicorn's server with the page and an open model)"""
    # Imported behind the flags, since torch takes seconds: --help and a wrong flag are answered at once.
    with quick_startup():
        with without_compiler():
            from prediction.extracting import plan_texts
            from prediction.live import Server, choose_rows
            from prediction.opening import open_model

        try:
            import uvicorn

            from web.app import make_app
        except ImportError as error:
            raise UserError(f"the page needs the package {error.name}; pip install -r requirements-web.txt") from None
        from web.asking import Model
        from web.graphs import Graphs
        from web.guard import make_door
        from web.jobs import Jobs

        plan, window = plan_texts(model_args, args)
    listening = listen(args.host, args.port)  # before a weight is read
    model = open_model(plan, [[0] * window])
    rows = args.batch_size or choose_rows(plan, model, window)
    topics = read_json(SAMPLE / "relations.json", "restore it")
    served = Model(plan, Server(plan, model, window, rows, args.max_waiting), window, args.max_text, topics)
    folder = Path(args.data_dir)
    with naming(folder):
        jobs = Jobs(folder / "jobs", served, args.max_jobs)
    graphs = Graphs(Path(args.store or folder / "graph"), folder)
    allowed = [name.strip() for name in (args.allow_host or "").split(",") if name.strip()]
    door = make_door(args.host, allowed, args.token, args.max_upload_MB * 2**20, args.max_text)
    app = make_app(served, jobs, graphs, door, read_examples(topics))
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=1024,
        timeout_graceful_shutdown=3,
        lifespan="on",
    )
    return listening, uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """An open socket; UserError that names the flag."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no address of this machine ({error})") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(where)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise UserError(f"--port {port}: {host} cannot be listened at ({error.strerror}); give another") from None
    return listening


def read_examples(topics: dict) -> list[dict]:
    """Texts to click, of the sample's held-out records: topic, text, relations; one of each topic, the first ones."""
    examples = {}
    with open(SAMPLE / "valid.json", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record["cate"] in topics:
                examples.setdefault(record["cate"], {"topic": record["cate"], "text": record["input"]})
    for topic, one in examples.items():
        one["relations"] = topics[topic]["relations"]
    return list(examples.values())[:EXAMPLES]


if __name__ == "__main__":
    run_script(main)
