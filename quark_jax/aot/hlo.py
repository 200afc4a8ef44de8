"""What a compiled program does, read from its text (HLO): memory traffic, collectives, loops, and
the compiler's own estimates, each as often as it is run.

XLA's cost analysis counts the body of a loop once. Here it counts as often as the loop runs.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

_BITS = {"pred": 8, "token": 0}
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAMED = re.compile(r"%([\w.-]+)")
_HEAD = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
_LINE = re.compile(r" *(ROOT )?%([\w.-]+) = (.*)$")
_CALLED = re.compile(r"(calls|body|condition|to_apply|branch_computations)=\{?((?:%[\w.-]+,? ?)+)")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
_FREE = {  # they move nothing themselves
    *("parameter", "constant", "iota", "partition-id", "replica-id"),
    *("tuple", "get-tuple-element", "bitcast", "optimization-barrier"),
    *("after-all", "add-dependency", "domain"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done"),
    *("send-done", "recv", "recv-done"),
}


@dataclass(frozen=True)
class Instruction:
    """One line: `name = shape kind(operands), rest`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    @property
    def called(self) -> list[tuple[str, str]]:
        """(how, name) of the computations that it runs."""
        return [
            (how, name)
            for how, names in _CALLED.findall(self.rest)
            for name in _NAMED.findall(names)
        ]


@dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: as HLO calls it; "send" goes to another slice.
      group: chips that take part.
      sent: bytes that the chip sends on its links each time, by the ring: all but its own part of
        what is gathered or scattered, twice that for an all-reduce.
      times: how often a step runs it.
    """

    kind: str
    group: int
    sent: float
    times: int


def array_bytes(shape: str, *, hbm: bool = False) -> int:
    """Bytes of all arrays in a shape as HLO writes it; `hbm`: those in the main memory alone."""
    total = 0
    for kind, sides, layout in _ARRAY.findall(shape):
        if hbm and "S(" in layout:  # in the memory on the chip
            continue
        bits = _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind)[0])
        total += bits * math.prod(int(side) for side in sides.split(",") if side) // 8
    return total


def _split(text: str) -> tuple[str, str]:
    """What stands before the first space or bracket that is not inside of brackets, and the rest:
    of "(a, b) c(d)", "(a, b)" and "c(d)"."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter == " ":
            return text[:place], text[place + 1 :]
    return text, ""


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            shape, call = _split(match[3])
            arguments, rest = _split(call)
            kind, _, inside = arguments.rstrip(",").partition("(")
            operands = tuple(_NAMED.findall(inside))
            current.append(Instruction(match[2], shape, kind, operands, rest, bool(match[1])))
    return computations, entry


@dataclass(frozen=True)
class Hlo:
    """A compiled program: `text` is that of `jax.stages.Compiled.as_text()`, `trips` how often a
    loop runs whose length is not known beforehand."""

    text: str = field(repr=False)
    trips: int = 1

    @cached_property
    def _parsed(self) -> tuple[dict[str, list[Instruction]], str]:
        return _parse(self.text)

    @property
    def _computations(self) -> Mapping[str, list[Instruction]]:
        return self._parsed[0]

    @cached_property
    def loops(self) -> dict[str, int | None]:
        """{loop: how often it runs}; None where that is not known beforehand."""
        whiles = (i for body in self._computations.values() for i in body if i.kind == "while")
        return {loop.name: self._trips(loop) for loop in whiles}

    def _trips(self, loop: Instruction) -> int | None:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        # A counted loop begins at 0 and compares with a constant.
        condition = self._computations[dict(loop.called)["condition"]]
        test = next(instruction for instruction in condition if instruction.root)
        bounds = [i for i in condition if i.kind == "constant" and i.name in test.operands]
        if test.kind == "compare" and "direction=LT" in test.rest and len(bounds) == 1:
            line = re.search(rf"%{re.escape(bounds[0].name)} = \S+ constant\((\d+)\)", self.text)
            return int(line[1]) if line else None
        return None

    @cached_property
    def _times(self) -> Mapping[str, int]:
        """How often each computation is run; what is called from a fusion belongs to the fusion."""
        computations, entry = self._parsed
        times: dict[str, int] = defaultdict(int)

        def visit(name: str, count: int) -> None:
            times[name] += count
            for instruction in computations[name]:
                if instruction.kind == "fusion":
                    continue
                inside = count
                if instruction.kind == "while":
                    inside *= self.loops[instruction.name] or self.trips
                for how, called in instruction.called:
                    if how != "to_apply" or instruction.kind == "call":
                        visit(called, inside)

        visit(entry, 1)
        return times

    def _run(self) -> Iterator[tuple[Instruction, int, Mapping[str, str]]]:
        """Instructions that are run by themselves, how often, and the shapes around them."""
        for name, count in self._times.items():
            shapes = {i.name: i.shape for i in self._computations[name]}
            for instruction in self._computations[name]:
                yield instruction, count, shapes

    def traffic(self, *, once: bool = False, hbm: bool = True) -> float:
        """Bytes that operations read and write in the main memory. `once`: loop bodies count once,
        and `hbm` false counts the memory on the chip too, as XLA's cost analysis does both."""
        total = 0.0
        for instruction, count, shapes in self._run():
            if instruction.kind in _FREE or instruction.kind.endswith(("-done", "-update")):
                continue
            total += (1 if once else count) * self._moved(instruction, shapes, hbm)
        return total

    def _moved(self, instruction: Instruction, shapes: Mapping[str, str], hbm: bool) -> float:
        kind, out = instruction.kind, array_bytes(instruction.shape, hbm=hbm)
        if kind == "slice-start":  # names source and target, and reads of the one what the other is
            target, _ = _split(_split(instruction.shape[1:])[1])
            return array_bytes(target) + array_bytes(target, hbm=hbm)
        if kind.endswith("-start") and instruction.shape.startswith("("):
            return out  # names source and target
        operands = [array_bytes(shapes.get(name, ""), hbm=hbm) for name in instruction.operands]
        if kind in ("dynamic-slice", "gather", "slice"):
            return (array_bytes(instruction.shape) if operands[0] else 0) + out
        if kind == "dynamic-update-slice":
            update = array_bytes(shapes.get(instruction.operands[1], ""))
            return operands[1] + (update if out else 0)
        if kind == "fusion":
            (_, called), *_ = instruction.called
            read = sum(
                min(size, self._read(called, number, size)) if size else 0
                for number, size in enumerate(operands)
            )
            return read + (min(out, self._written(called, out)) if out else 0)
        return sum(operands) + out

    def _read(self, computation: str, number: int, size: int) -> float:
        """Bytes that a fused computation reads of its parameter `number`."""
        body = self._computations[computation]
        names = {i.name for i in body if i.kind == "parameter" and i.operands == ()}
        parameter = next(
            (i.name for i in body if i.name in names and self._number(computation, i) == number),
            None,
        )
        total, aliases = 0.0, {parameter}
        for instruction in body:
            places = [n for n, name in enumerate(instruction.operands) if name in aliases]
            if not places:
                continue
            if instruction.kind == "bitcast":
                aliases.add(instruction.name)
            elif instruction.kind in ("dynamic-slice", "gather", "slice") and places == [0]:
                total += array_bytes(instruction.shape)
            elif instruction.kind == "dynamic-update-slice" and places == [0]:
                continue  # in place
            elif instruction.kind == "fusion":
                (_, called), *_ = instruction.called
                if self._root(called).kind == "parameter":  # a bitcast
                    aliases.add(instruction.name)
                else:
                    total += sum(self._read(called, place, size) for place in places)
            else:
                return size
        return total

    def _number(self, computation: str, parameter: Instruction) -> int:
        return self._numbers[computation][parameter.name]

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        """{computation: {parameter: its number}}"""
        numbers: dict[str, dict[str, int]] = defaultdict(dict)
        current = ""
        for line in self.text.splitlines():
            if not line.startswith(" ") and (head := _HEAD.match(line)):
                current = head[2]
            elif match := re.match(r" *(?:ROOT )?%([\w.-]+) = .* parameter\((\d+)\)", line):
                numbers[current][match[1]] = int(match[2])
        return numbers

    def _root(self, computation: str) -> Instruction:
        """What a computation returns, whatever it is taken for."""
        body = self._computations[computation]
        root = next(i for i in body if i.root)
        while root.kind == "bitcast":
            root = next(i for i in body if i.name == root.operands[0])
        return root

    def _written(self, computation: str, out: int) -> float:
        shapes = {i.name: i.shape for i in self._computations[computation]}
        root = self._root(computation)
        if root.kind == "dynamic-update-slice":
            return array_bytes(shapes[root.operands[1]])
        return out

    def cycles(self) -> int:
        """What the TPU compiler estimates its operations to take, those that it says so of: neither
        collectives nor kernels."""
        return sum(cycles for cycles, _ in self.dearest())

    def dearest(self) -> list[tuple[int, str]]:
        """(cycles, what JAX calls it) of the operations that have cycles, the dearest first."""
        found: Counter = Counter()
        for i, count, _ in self._run():
            if match := re.search(r'"estimated_cycles":"(\d+)"', i.rest):
                name = re.search(r'op_name="([^"]*)"', i.rest)
                found[name[1] if name else i.name] += count * int(match[1])
        return [(cycles, name) for name, cycles in found.most_common()]

    def collectives(self) -> list[Collective]:
        """All collectives. Copies of one in several computations (of a pipelined loop) have one
        channel, and count once."""
        found: dict[str, Collective] = {}
        for name, count in self._with_fused().items():
            for i in self._computations[name]:
                kind = i.kind.removesuffix("-start")
                if kind not in _KINDS or "is_host_transfer=true" in i.rest:
                    continue
                group = _group(i.rest)
                sent = _sent(kind, group, i, {j.name: j.shape for j in self._computations[name]})
                channel = re.search(r"channel_id=(\d+)", i.rest)
                key = f"{kind} {channel[1]}" if channel else i.name
                before = found.get(key)
                if group > 1 and (before is None or before.times < count):
                    found[key] = Collective(kind, group, sent, count)
        return list(found.values())

    def _with_fused(self) -> Mapping[str, int]:
        """`_times`, with the computations of fusions: collectives are fused with products."""
        times = dict(self._times)
        waiting = list(times)
        while waiting:
            name = waiting.pop()
            for instruction in self._computations[name]:
                if instruction.kind != "fusion":
                    continue
                for _, called in instruction.called:
                    if times.get(called, 0) < times[name]:
                        times[called] = times[name]
                        waiting.append(called)
        return times

    def recomputed(self) -> Counter:
        """What is computed a second time in the backward pass, {operation as JAX calls it: how
        many}, by the program ("dot_general", ...) and by the compiler ("compiler")."""
        counts: Counter = Counter()
        for name in self._with_fused():
            for i in self._computations[name]:
                if match := re.search(r'op_name="[^"]*rematted_computation/[^"]*?(\w+)"', i.rest):
                    counts[match[1]] += 1
                if ".remat" in i.name:
                    counts["compiler"] += 1
        return counts


def _group(rest: str) -> int:
    """How many chips take part, from replica_groups in any of its three notations."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    return 2  # of a pair: permutations and sends


def _sent(kind: str, group: int, i: Instruction, shapes: Mapping[str, str]) -> float:
    operands = sum(array_bytes(shapes.get(name, "")) for name in i.operands)
    rest = (group - 1) / group
    match kind:
        case "all-gather":
            return operands * (group - 1)
        case "all-reduce":
            return 2 * operands * rest
        case "reduce-scatter" | "all-to-all":
            return operands * rest
    return operands


def by_kind(collectives: Sequence[Collective]) -> dict[str, tuple[int, float]]:
    """{kind: (how many a step runs, bytes that a chip sends for them)}"""
    return {
        kind: (
            sum(c.times for c in collectives if c.kind == kind),
            sum(c.times * c.sent for c in collectives if c.kind == kind),
        )
        for kind in _KINDS
        if any(c.kind == kind for c in collectives)
    }
