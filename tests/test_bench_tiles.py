"""What scripts/bench_8bit.py says of tiles that are none or do not run, and of more inputs than its kernel serves."""

import pytest
from bench_8bit import SHAPES, choose_counts, compare_tiles, main, many_tiles

from common.errors import UserError


@pytest.mark.parametrize(
    "tile", ["1,2", "a,b,c,d,e,f", "64,64,64,4,3,0", "64,64,64,4,3,512,", "64,64,96,4,3,512", "-64,64,64,4,3,512", "²,"]
)
def test_a_tile_that_is_none_is_an_error_that_says_what_one_is(tile):
    with pytest.raises(UserError, match=r"--tiles .*: expected six whole numbers.* as 64,64,64,4,3,512"):
        main(["--bits", "4", f"--tiles={tile}"])


def test_a_number_of_inputs_below_one_is_an_error():
    with pytest.raises(UserError, match="--counts 0: expected at least 1"):
        main(["--counts", "16", "0"])


def test_numbers_of_inputs_above_what_the_kernel_serves_are_left_out_with_a_line(capsys):
    assert choose_counts((1, 128, 256, 4096), 128) == [1, 128]
    assert capsys.readouterr().err == "--counts 256 4096: the kernel serves 128 inputs at most; left out\n"
    assert choose_counts((1, 128), 128) == [1, 128]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="--counts 256: the kernel serves 128 inputs at most; give smaller ones"):
        choose_counts((256,), 128)


def test_of_tiles_that_do_not_run_a_line_is_said_and_the_others_are_compared(capsys):
    def time_tile(count, tile):
        if count > 16 or tile[1] > 64:
            raise RuntimeError("out of resources")
        return [float(tile[5])] * len(SHAPES)

    tiles = [(16, 64, 64, 4, 3, 512), (16, 64, 64, 4, 3, 256), (16, 128, 64, 4, 3, 256)]
    compare_tiles([16, 32], lambda count: tiles, time_tile)
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ["16", "16,64,64,4,3,256", "768", *["256.0"] * 3]
    assert said.out.count("best for") == len(SHAPES)
    assert "16 16,128,64,4,3,256: RuntimeError\n" in said.err
    assert said.err.endswith("32 none of the tiles ran\n")
    with pytest.raises(UserError, match="--tiles: none of them ran"):
        compare_tiles([32, 64], many_tiles, time_tile)
    assert capsys.readouterr().out == ""
