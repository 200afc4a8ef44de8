"""What a program's text tells, on a program that is short enough to count by hand."""

import pytest

from quark_jax.aot import Hlo, by_kind
from quark_jax.aot.hlo import array_bytes

# A loop of 4 rounds that gathers the weights of a layer, and sums afterwards.
TEXT = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%slice_of (stack: f32[4,8,16], at: s32[]) -> f32[8,16] {
  %stack = f32[4,8,16]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8,16]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero)
  ROOT %flat = f32[8,16]{1,0} bitcast(%row)
}

%same (plain: f32[64]) -> f32[64] {
  %plain = f32[64]{0} parameter(0)
  ROOT %same.1 = f32[64]{0} bitcast(%plain)
}

%doubled (once: f32[64]) -> f32[64] {
  %once = f32[64]{0} parameter(0)
  %twice = f32[64]{0} fusion(%once), kind=kLoop, calls=%same
  ROOT %sum.1 = f32[64]{0} add(%twice, %twice)
}

%body (state: (s32[], f32[4,8,16])) -> (s32[], f32[4,8,16]) {
  %state = (s32[], f32[4,8,16]{2,1,0}) parameter(0)
  %round = s32[] get-tuple-element(%state), index=0
  %weights = f32[4,8,16]{2,1,0} get-tuple-element(%state), index=1
  %layer = f32[8,16]{1,0} fusion(%weights, %round), kind=kLoop, calls=%slice_of, ABOUT
  %whole = f32[32,16]{1,0} all-gather(%layer), channel_id=7, replica_groups=[4,4]<=[16]
  %one = s32[] constant(1)
  %next = s32[] add(%round, %one)
  ROOT %after = (s32[], f32[4,8,16]{2,1,0}) tuple(%next, %weights)
}

%condition (state.1: (s32[], f32[4,8,16])) -> pred[] {
  %state.1 = (s32[], f32[4,8,16]{2,1,0}) parameter(0)
  %round.1 = s32[] get-tuple-element(%state.1), index=0
  %rounds = s32[]{:T(128)} constant(4)
  ROOT %less = pred[] compare(%round.1, %rounds), direction=LT
}

ENTRY %main (p: f32[4,8,16]) -> f32[64] {
  %p = f32[4,8,16]{2,1,0:T(8,128)} parameter(0)
  %begin = s32[] constant(0)
  %tuple.1 = (s32[], f32[4,8,16]{2,1,0}) tuple(%begin, %p)
  %loop = (s32[], f32[4,8,16]{2,1,0}) while(%tuple.1), condition=%condition, body=%body
  %near = bf16[64]{0:T(128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %far = f32[64]{0} copy(%near)
  %parts = f32[64]{0} all-reduce(%far), channel_id=8, MESH, to_apply=%sum
  ROOT %moved = f32[64]{0} collective-permute(%parts), channel_id=9, source_target_pairs={{0,1}}
}
"""
_ABOUT = (
    'metadata={op_name="jit(step)/rematted_computation/dot_general"}, '
    'backend_config={"window_config":{"estimated_cycles":"100"}}'
)
TEXT = TEXT.replace("ABOUT", _ABOUT)
TEXT = TEXT.replace("MESH", "replica_groups=mesh['data'=4,'fsdp'=4] {'data'}")


def test_bytes_of_shapes():
    assert array_bytes("bf16[2,3]{1,0:T(8,128)(2,1)}") == 12
    assert array_bytes("(f32[4], s8[3]{0:S(1)}, pred[], u4[8])") == 16 + 3 + 1 + 4
    assert array_bytes("(f32[4], s8[3]{0:S(1)})", hbm=True) == 16


def test_a_loop_counts_as_often_as_it_runs():
    hlo = Hlo(TEXT)
    assert hlo.loops == {"loop": 4}
    assert hlo.cycles() == 400
    assert Hlo(TEXT.replace("direction=LT", "direction=NE")).loops == {"loop": None}
    assert Hlo(TEXT.replace("direction=LT", "direction=NE"), trips=9).cycles() == 900


def test_collectives_by_kind_count_and_bytes():
    """Layers of 512 bytes go to 3 others in each of 4 rounds; 256 bytes twice round a ring of 4;
    256 to a neighbour."""
    found = {c.kind: c for c in Hlo(TEXT).collectives()}
    assert found["all-gather"].group == found["all-reduce"].group == 4
    assert by_kind(Hlo(TEXT).collectives()) == {
        "all-gather": (4, 4 * 3 * 512.0),
        "all-reduce": (1, 2 * 256 * 3 / 4),
        "collective-permute": (1, 256.0),
    }


def test_copies_of_a_collective_count_once():
    lines = TEXT.splitlines()
    (place,) = (n for n, line in enumerate(lines) if "all-reduce(" in line)
    lines.insert(place, lines[place].replace("%parts", "%copied"))
    assert by_kind(Hlo("\n".join(lines)).collectives())["all-reduce"][0] == 1


@pytest.mark.parametrize(
    ("notation", "group"),
    [("{{0,1},{2,3}}", 2), ("[2,8]<=[16]", 8), ("mesh['a'=2,'b'=3,'c'=4] {'a','c'}", 8)],
)
def test_notations_of_groups(notation, group):
    text = TEXT.replace("[4,4]<=[16]", notation)
    (gather,) = (c for c in Hlo(text).collectives() if c.kind == "all-gather")
    assert gather.group == group


def test_traffic_is_what_is_read_and_written():
    """A slice is read, not the stack that it is of; memory on the chip does not count."""
    layer, whole, parts = 512, 2048, 256
    in_loop = 2 * layer + (layer + whole) + 12  # slice, gather, the counter
    after = parts + 2 * parts + 2 * parts  # copy to memory, sum, permutation
    test = 4 + 4 + 1
    # The condition is counted with the rounds; the slice's index is a number of 4 bytes.
    assert Hlo(TEXT).traffic() == 4 * (in_loop + 4 + test) + after
    assert Hlo(TEXT).traffic(once=True) == in_loop + 4 + test + after
    assert Hlo(TEXT).traffic(hbm=False) == 4 * (in_loop + 4 + test) + after + 2 * 128


@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        # A part of a stack is fetched to the chip, to other memory, or put back from the chip.
        (
            "%a = ((f32[64]{0}), f32[16]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%parts), "
            "slice={[0:16]}",
            64,
        ),
        ("%a = ((f32[64]{0}), f32[16]{0}, s32[]{:S(2)}) slice-start(%parts), slice={[0:16]}", 128),
        ("%a = f32[16]{0:S(1)} slice(%parts), slice={[0:16]}", 64),
        ("%a = f32[16]{0} slice(%parts), slice={[0:16]}", 128),
        ("%a = bf16[16]{0} slice(%near), slice={[0:16]}", 32),
        ("%a = f32[64]{0} dynamic-update-slice(%parts, %begin, %begin)", 8),
        ("%a = f32[64]{0} dynamic-update-slice(%parts, %near, %begin)", 128),
        ("%a = f32[64]{0} fusion(%parts), kind=kLoop, calls=%doubled", 512),
        ("%a = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%parts)", 256),
    ],
)
def test_traffic_of_parts(operation, moved):
    """What stays in the memory on the chip does not count, what passes between the two does."""
    line = "  ROOT %moved"
    text = TEXT.replace(line, f"  {operation}\n{line}")
    assert Hlo(text).traffic() - Hlo(TEXT).traffic() == moved


def test_what_is_computed_twice():
    assert Hlo(TEXT).recomputed() == {"dot_general": 1}
    assert Hlo(TEXT.replace("%far", "%far.remat")).recomputed()["compiler"] == 1
