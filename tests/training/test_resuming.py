"""From which checkpoints a training goes on, and why not from the others: nothing is continued in silence."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from helpers_training import flags

import test_finetune
from common.errors import UserError
from test_finetune import main
from training.resuming import clear_checkpoints, find_checkpoint
from training.whole import Wanted, fault_of

LONG = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
ALONE = Wanted()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run with checkpoints at the steps 2, 4 and 6 that was stopped before its result was written."""
    out = tmp_path_factory.mktemp("run") / "out"
    main(flags(out, **LONG))
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "status": "training"}))
    return out


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "out")


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(test_finetune, "load_base", lambda *_, **__: pytest.fail("the base was loaded first"))


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoil(file):
    """The numbers of one tensor, by another way than torch's."""
    numbers = torch.load(file, weights_only=True)["state"][0]["exp_avg"].numpy().tobytes()
    assert numbers in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(numbers, numbers[::-1]))


def other_rank(file):
    """An optimizer's state of an adapter with other ranks."""
    state = torch.load(file, weights_only=True)
    for moments in state["state"].values():
        moments["exp_avg"] = torch.zeros(3, 3)
    torch.save(state, file)


DAMAGES = [
    ("optimizer.pt", None, "optimizer.pt missing: --save_only_model"),
    ("scheduler.pt", None, "scheduler.pt missing"),
    ("rng_state.pth", None, "rng_state.pth missing"),
    ("trainer_state.json", None, "trainer_state.json, which is written last, is missing or cut off"),
    ("adapter_model.safetensors", None, "adapter_model.safetensors missing"),
    ("optimizer.pt", cut, "optimizer.pt cannot be read"),
    ("optimizer.pt", spoil, "optimizer.pt cannot be read: .* differs from its checksum"),
    ("optimizer.pt", other_rank, "optimizer.pt is of another adapter"),
    ("optimizer.pt", lambda file: torch.save([1], file), "optimizer.pt holds something else"),
    ("scheduler.pt", lambda file: file.write_text("nonsense"), "scheduler.pt cannot be read"),
    ("rng_state.pth", lambda file: file.write_bytes(b""), "rng_state.pth cannot be read"),
    ("rng_state.pth", lambda file: torch.save({"python": 1}, file), "rng_state.pth holds something else"),
    ("trainer_state.json", cut, "trainer_state.json, which is written last"),
    ("trainer_state.json", lambda file: file.write_text("[]"), "trainer_state.json, which is written last"),
    ("trainer_state.json", lambda file: file.write_text('{"global_step": "4"}'), "trainer_state.json, which is"),
    ("trainer_state.json", lambda file: file.write_text('{"global_step": true}'), "trainer_state.json, which is"),
    (
        "trainer_state.json",
        lambda file: file.write_text('{"global_step": 1}'),
        "says step 1, and its optimizer has made",
    ),
    ("adapter_model.safetensors", cut, "adapter_model.safetensors: cut off"),
]


@pytest.mark.parametrize(("name", "damage", "fault"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_checkpoint_that_cannot_go_on_is_passed_over_or_refused_before_the_base_is_loaded(
    run, nothing_loads, name, damage, fault
):
    newest = run / "checkpoint-6"
    if damage is None:
        (newest / name).unlink()
    else:
        damage(newest / name)
    found = find_checkpoint(run, ALONE)
    assert found.checkpoint == str(run / "checkpoint-4")
    assert list(found.passed) == [str(newest)]
    with pytest.raises(UserError, match=f"--resume_from_checkpoint {newest}: no whole checkpoint.*{fault}.*newest is"):
        main(flags(run, **LONG, resume_from_checkpoint=newest))


def test_auto_takes_the_older_one_with_a_reason_and_ends_as_if_never_stopped(run, begun, capsys):
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    cut(run / "checkpoint-4" / "scheduler.pt")
    main(flags(run, **LONG, resume_from_checkpoint="auto"))
    said = capsys.readouterr().err
    assert f"resume: {run / 'checkpoint-6'} is passed over, no whole checkpoint of this run (optimizer.pt" in said
    assert f"resume: {run / 'checkpoint-4'} is passed over, no whole checkpoint of this run (scheduler.pt" in said
    assert f"resume: {run / 'checkpoint-2'}\n" in said
    one, two = ((folder / "adapter_model.safetensors").read_bytes() for folder in (run, begun))
    assert one == two
    assert not find_checkpoint(run, ALONE).passed  # written anew


def test_no_checkpoint_that_can_go_on_is_no_reason_to_start_over_in_silence(run, nothing_loads, capsys):
    for folder in run.glob("checkpoint-*"):
        (folder / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be gone on from; .*--overwrite_output_dir"):
        main(flags(run, **LONG, resume_from_checkpoint="auto"))
    with pytest.raises(UserError, match="holds a run already .checkpoint-6.;"):
        main(flags(run, **LONG))
    assert "checkpoint-2 is passed over" in capsys.readouterr().err


def test_checkpoints_that_were_all_cut_off_by_a_kill_are_begun_anew(run, capsys):
    for folder in run.glob("checkpoint-*"):
        (folder / "trainer_state.json").unlink()
    main(flags(run, **LONG, resume_from_checkpoint="auto"))
    assert "resume: no whole checkpoint yet, starting at step 0" in capsys.readouterr().err


def test_save_only_model_leaves_weights_that_are_not_gone_on_from(tmp_path):
    main(flags(tmp_path, "--save_only_model", **LONG))
    with pytest.raises(UserError, match="optimizer.pt, scheduler.pt, rng_state.pth missing: --save_only_model"):
        main(flags(tmp_path, **LONG, resume_from_checkpoint=tmp_path / "checkpoint-4"))
    with pytest.raises(UserError, match="finished run without checkpoints, which cannot be prolonged"):
        main(flags(tmp_path, **{**LONG, "max_steps": 8}, resume_from_checkpoint="auto"))


def test_the_folder_of_a_result_is_no_checkpoint(run, nothing_loads):
    with pytest.raises(UserError, match="no whole checkpoint of this run .optimizer.pt, scheduler.pt.*missing"):
        main(flags(run, **LONG, resume_from_checkpoint=run))


def test_starting_anew_removes_the_runs_own_checkpoints_and_none_that_somebody_named(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-best"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-notes.txt", "log.jsonl"):
        (tmp_path / name).touch()
    clear_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best", "checkpoint-notes.txt"]


def test_a_checkpoint_of_another_run_is_passed_over_or_refused(run, tmp_path, nothing_loads, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for name in ("run.json", *(f"checkpoint-{step}/run.json" for step in (2, 4, 6))):
        settings = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps({**settings, "seed": 7}))
    with pytest.raises(UserError, match="started otherwise .seed: 7 then, 42 now"):
        main(flags(tmp_path / "new", **LONG, resume_from_checkpoint=other / "checkpoint-4"))
    shutil.copytree(other / "checkpoint-6", run / "checkpoint-8")
    found = find_checkpoint(run, ALONE)
    assert found.checkpoint == str(run / "checkpoint-6")
    assert found.passed == {str(run / "checkpoint-8"): "of another run: seed: 7 then, 42 now"}
    stray = shutil.copytree(run / "checkpoint-4", tmp_path / "stray")
    (stray / "run.json").unlink()
    with pytest.raises(UserError, match=r"stray: no run.json there or beside it says of which run it is"):
        main(flags(run, **LONG, resume_from_checkpoint=stray))


def test_the_number_of_processes_and_the_split_are_the_checkpoints(run):
    folder = run / "checkpoint-4"
    assert fault_of(folder, Wanted(processes=2)) == "written by 1 processes; go on with as many, not 2"
    assert fault_of(folder, Wanted(split=True)) == "written without --fsdp; drop it"
    assert fault_of(folder, Wanted(scaled=True)).startswith("scaler.pt missing")
    shutil.copy(folder / "rng_state.pth", folder / "rng_state_1.pth")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert fault_of(folder, ALONE) == "written by 2 processes; go on with as many, not 1"
    assert fault_of(folder, Wanted(processes=2)) is None
    (folder / "rng_state_1.pth").unlink()
    assert fault_of(folder, Wanted(processes=2)) == "written by 1 processes; go on with as many, not 2"
    (folder / "pytorch_model_fsdp.bin").touch()
    assert fault_of(folder, ALONE) == "written with --fsdp; add it"


def test_a_checkpoint_is_whole_only_when_every_process_has_written_its_part(tmp_path, monkeypatch):
    """The last file of a process that is behind is rng_state_N.pth; a kill before it leaves no trainer_state.json."""
    out, wait = tmp_path / "out", Accelerator.wait_for_everyone

    def end(accelerator):
        if list(out.glob("checkpoint-2/rng_state*")):
            raise KeyboardInterrupt
        wait(accelerator)

    monkeypatch.setattr(Accelerator, "wait_for_everyone", end)
    with pytest.raises(KeyboardInterrupt):
        main(flags(out, **LONG))
    assert list(find_checkpoint(out, ALONE).passed) == [str(out / "checkpoint-2")]
    assert "trainer_state.json" in fault_of(out / "checkpoint-2", Wanted(processes=2))
    monkeypatch.undo()
    main(flags(out, **LONG, resume_from_checkpoint="auto"))
    assert json.loads((out / "run.json").read_text())["results"]["steps"] == 6


def test_what_only_shows_while_it_is_taken_up_is_one_sentence(run):
    """All is whole, but the random numbers are none that Python takes."""
    file = run / "checkpoint-6" / "rng_state.pth"
    torch.save({"python": (3, (1, 2), None), "numpy": (), "cpu": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=r"checkpoint-6: cannot be gone on from \(.*\); take an older one"):
        main(flags(run, **{**LONG, "max_steps": 8}, resume_from_checkpoint="auto"))
