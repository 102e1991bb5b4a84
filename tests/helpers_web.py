"""The page's server over a tiny random model, as several test files use it."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from kg.wordings import ask_for
from prediction.extracting import plan_texts
from prediction.live import Server
from prediction.opening import open_model
from utils.args_serve import parse_serve
from web.app import make_app
from web.asking import Model
from web.graphs import Graphs
from web.guard import make_door
from web.jobs import Jobs

TOPICS = {
    "作品": {"relations": ["作者", "类型"], "entities": ["作品", "人物"]},
    "建筑": {"relations": ["位于", "高度"], "entities": []},
}
TEXT = "东方明珠位于上海市，高468米。"
EXAMPLES = [{"topic": "建筑", "text": TEXT, "relations": ["位于", "高度"]}]
QUESTION = {"text": TEXT, "relations": ["位于", "高度"]}
RECORD = {"instruction": ask_for(["位于", "高度"]), "input": TEXT}
BASE = "http://127.0.0.1"


def open_plan(base, *more, constrained=True):
    """A plan and its open model. Constrained, a random model says triples of the text."""
    more = ("--constrain", "text", *more) if constrained else more
    return open_flags("--model_name_or_path", base, "--max_new_tokens", "40", *more)


def open_adapter(folder):
    """The same of an adapter."""
    return open_flags("--lora_weights", folder, "--merge_lora")


def open_flags(*flags):
    """The same of any flags."""
    model_args, args = parse_serve(list(map(str, flags)))
    plan, window = plan_texts(model_args, args)
    return plan, open_model(plan, [[0] * window]), window


@contextmanager
def serving(
    opened,
    folder,
    token=None,
    rows=4,
    waiting=64,
    most_jobs=3,
    upload=2**20,
    text=2000,
    host="127.0.0.1",
    topics=TOPICS,
):
    """(application, Model, Jobs, Graphs) of a server with its data in `folder`; its threads end with the block."""
    plan, model, window = opened
    served = Model(plan, Server(plan, model, window, rows, waiting), window, text, topics)
    jobs = Jobs(folder / "jobs", served, most_jobs)
    graphs = Graphs(folder / "graph", folder)
    app = make_app(served, jobs, graphs, make_door(host, [], token, upload, text), EXAMPLES)
    try:
        yield app, served, jobs, graphs
    finally:
        jobs.ending = True
        if served.server.thread.ident:
            served.server.close()
        if jobs.thread.ident:
            jobs.close()


@contextmanager
def listening(app):
    """The address of an application that answers in a thread of its own."""
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"{BASE}:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def hold(server, holds):
    """Have the model's thread wait before each token for as long as `holds(who asked, ids so far)`.

    A test sees so what comes before the end, however slow it is itself. To be called before the thread starts.
    """
    took = server._took

    def wait_and_take(number, ids):
        wait_until(lambda: not holds(server.running[number][0], ids))
        return took(number, ids)

    server._took = wait_and_take


def wait_until(holds, seconds=120):
    end = time.time() + seconds
    while not (found := holds()):
        assert time.time() < end, "it takes too long"
        time.sleep(0.02)
    return found
