# SPDX-License-Identifier: Apache-2.0
"""Makes question files: records of any source become rows in verl's columns, checked, deduplicated and kept apart.

Nothing is lost on the way: a row that is left out is counted by reason and written, with its place in the source and
the reason, to ``FILE.skipped.jsonl``; ``FILE.meta.json`` says what the file was made from and how.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tempo_verl import __version__
from tempo_verl.data.columns import Answer, Columns, RawQuestion, guess_style, read_answer, read_question
from tempo_verl.data.labels import BASES, Labels, UndecidedLabel
from tempo_verl.data.measures import with_measures
from tempo_verl.data.outputs import Outputs, beside
from tempo_verl.data.overlap import question_hash
from tempo_verl.data.presets import Preset, preset
from tempo_verl.data.sources import LocalFile, Record, Source, find_sources
from tempo_verl.data.templates import load_template
from tempo_verl.data.values import RowError, clean, is_missing, lookup
from tempo_verl.errors import UserError
from tempo_verl.rewards import STYLES, check_allowed, check_ground_truth, check_style

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("split", pa.string()),
                    ("id", pa.string()),
                    ("origin", pa.string()),
                    ("question_hash", pa.string()),
                    ("options", pa.list_(pa.string())),
                ]
            ),
        ),
    ]
)
# Rows that are wrong; all others that are left out are left out on purpose.
BY_INTENT = frozenset({"duplicate", "conflicting duplicate", "overlap", "prompt too long"})
NO_ANSWERS = "unlabeled"
MANY = 20  # rows with the same letter for an answer, which are no chance
# By verifier; all others are asked for a box. An answer of signs, like "} ) ]", cannot stand in one.
DEFAULT_TEMPLATES = {"choice": "choice", "grid": "grid", "exact": "think_answer"}


@dataclass(frozen=True)
class Settings:
    """What to prepare; the fields are the options of ``tempo-verl prepare``.

    ``kind`` and ``rest_as`` are labeled, unlabeled or heldout; ``sample`` is a number of rows, or a share of them below
    1; ``columns`` are the columns that the user named, by role.
    """

    sources: tuple[str, ...]
    out: Path
    kind: str
    preset: str | None = None
    template: str | None = None
    against: tuple[Path, ...] = ()
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    verifier: str = "auto"
    tolerance: str | None = None
    label_base: str | None = None
    join_answers: bool = False
    ability: str | None = None
    name: str | None = None
    dedup: str = "normalized"
    overlap: str = "drop"
    bad_rows: str = "fail"
    drop_answers: bool = False
    max_prompt_tokens: int | None = None
    tokenizer: str | None = None
    sample: float | None = None
    seed: int = 0
    rest: Path | None = None
    rest_as: str | None = None
    hub_config: str | None = None
    hub_split: str | None = None
    hub_revision: str | None = None
    encoding: str | None = None
    allow_verifier: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass
class Summary:
    """What was done.

    Attributes:
        read: records of the source.
        written: rows by file.
        skipped: rows left out, by reason.
        verifiers: rows by verifier.
        columns: rows by role and the column that was used for it.
        guesses: what was decided without being asked for, in sentences.
        notes: what else the user should know, in sentences.
    """

    read: int = 0
    written: dict[str, int] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    verifiers: Counter[str] = field(default_factory=Counter)
    columns: dict[str, Counter[str]] = field(default_factory=dict)
    guesses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Read:
    """What a record holds, before its column tells what its label means.

    Attributes:
        location: of the record.
        question, answer: or why there is none.
        identity: its own id.
        style: the verifier that it names, if it is one of ours.
        keeps_chat: it is in verl's columns, so that its messages stay as they are.
        others: (role, column taken, another that holds something else).
        told: what was guessed about its data source, in sentences.
    """

    location: str
    question: RawQuestion
    answer: Answer | RowError
    identity: str | None
    style: str | None
    keeps_chat: bool
    others: tuple[tuple[str, str, str], ...]
    told: tuple[str, ...]


def prepare(settings: Settings) -> Summary:
    """Make the file, and what goes with it.

    Raises:
        UserError: whatever keeps the file from being made; nothing is written then.
    """
    _check(settings)
    chosen = preset(settings.preset) if settings.preset else None
    if not settings.sources and chosen is None:
        raise UserError("no SOURCE: give a file, a folder or a hub id, or a --preset")
    sources = find_sources(
        settings.sources or (chosen.hub if chosen else ()),
        encoding=settings.encoding,
        config=settings.hub_config or (chosen.config if chosen else None),
        split=settings.hub_split or (chosen.split if chosen else None),
        revision=settings.hub_revision,
    )
    for path in filter(None, (settings.out, settings.rest)):
        if any(isinstance(source, LocalFile) and source.path.resolve() == path.resolve() for source in sources):
            raise UserError(f"--out {path}: is the source itself; give another file")
    builder = _Builder(settings, chosen)
    summary = builder.summary
    if chosen and chosen.hub_note and not (settings.sources or settings.hub_config or settings.hub_split):
        summary.notes.append(chosen.hub_note)
    with ExitStack() as stack:
        outputs = Outputs(stack)
        skipped = outputs.open(beside(settings.out, ".skipped.jsonl"))
        rows = list(builder.rows(sources, skipped))
        if not rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.most_common())
            raise UserError(
                f"{', '.join(settings.sources) or settings.preset}: no rows left of {summary.read} read"
                + (f" ({reasons})" if reasons else "; give a source with at least one row")
            )
        parts = _parts(rows, settings)
        summary.written = {str(path): len(part) for path, _, part in parts}
        if settings.sample is not None:
            size = summary.written[str(settings.out)]
            summary.notes.append(f"{size} of {len(rows)} rows are in the sample, with seed {settings.seed}")
        for path, kind, part in parts:
            _write_parquet(outputs, path, kind, part, settings)
            meta = {"file": path.name, "as": kind, **_meta(settings, chosen, sources, summary)}
            outputs.open(beside(path, ".meta.json")).write(clean(json.dumps(meta, indent=2, ensure_ascii=False)) + "\n")
        outputs.commit()
    return summary


# ---------------------------------------------------------------------- rows


class _Builder:
    """Turns records into rows, and keeps count."""

    def __init__(self, settings: Settings, chosen: Preset | None):
        self.summary = Summary()
        self._settings = settings
        self._columns = _columns(settings, chosen)
        self._strip = [re.compile(pattern) for pattern in (chosen.strip if chosen else ())]
        self._verifier = settings.verifier if settings.verifier != "auto" or not chosen else chosen.verifier
        self._template = settings.template or (chosen.template if chosen else None)
        self._ability = settings.ability or (chosen.ability if chosen else None)
        self._data_source = settings.name or settings.preset or _stem(settings.sources[0])
        self._named = bool(settings.name or settings.preset)
        self._templates = lru_cache(load_template)
        self._why_not = lru_cache(maxsize=65536)(check_ground_truth)
        self._needs_answers = {settings.kind, settings.rest_as} & {"labeled", "heldout"}
        self._known = {path: _known_questions(path, self._columns, self._strip) for path in settings.against}
        self._seen: dict[str, tuple[str, str | None]] = {}
        self._ids: Counter[str] = Counter()
        self._monitoring: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._chosen: Counter[str] = Counter()  # ground truths of choices, without the options' texts
        preset_base = chosen.label_base if chosen else None
        said_by = "--label-base" if settings.label_base else f"the preset {settings.preset}"
        self._labels = Labels(settings.label_base or preset_base, said_by)
        # (role, column taken, another that holds something else): rows; a preset knows which one is meant
        self._candidates: Counter[tuple[str, str, str]] = Counter()
        self._guesses = chosen is None
        self._tokens = _token_counter(settings)
        if self._template and self._template != "keep":
            self._templates(self._template)
        if self._verifier != "auto":
            check_style(self._verifier)
        if chosen and chosen.note:
            self.summary.notes.append(chosen.note)

    def rows(self, sources: Iterable[Source], skipped: IO[str]) -> Iterator[dict[str, Any]]:
        """Rows that are kept, in the order of the source.

        All are read before the first is made: what a label means may depend on every other one.

        Raises:
            UserError: a bad row, or an overlap, that is to stop.
        """
        records = tqdm(chain.from_iterable(sources), desc="reading", unit=" rows", disable=None, leave=False)
        read = deque(self._read(record) for record in records)
        self.summary.read = len(read)
        with tqdm(total=len(read), desc="checking", unit=" rows", disable=None, leave=False) as progress:
            while read:
                one = read.popleft()
                progress.update()
                try:
                    if isinstance(one, tuple):
                        raise one[1]
                    yield self._row(one)
                except RowError as error:
                    location = one[0] if isinstance(one, tuple) else one.location
                    self._leave_out(location, error, skipped)
        self._take_guesses()
        self._take_notes()

    def _read(self, record: Record) -> _Read | tuple[str, RowError]:
        """A record's question and answer; or its location and why it has no question, if that is not to stop."""
        fields = record.fields
        try:
            if record.problem:
                raise RowError("unreadable row", record.problem)
            question = read_question(fields, self._columns, strip=self._strip, seed=self._settings.seed)
            _, identity = self._columns.find(fields, "id")
            passage, _ = self._columns.find(fields, "passage", besides=question.column)
        except RowError as error:
            self._stop(record.location, error)
            return record.location, error
        answer: Answer | RowError
        try:
            answer = read_answer(fields, self._columns, question, join=self._settings.join_answers)
            verifier = None if self._verifier == "auto" else self._verifier
            answer = with_measures(answer, fields, verifier, self._settings.tolerance)
            if answer.label is not None:
                self._labels.add(answer.column, record.location, answer.label)
        except RowError as error:
            answer = error
        others = []
        taken = {"question": question.column, "answer": answer.column if isinstance(answer, Answer) else None}
        for role, column in taken.items() if self._guesses else ():
            if column is not None:
                found = self._columns.others(fields, role, column)
                others += [(role, column, other) for other in found if other not in (passage, question.column)]
        return _Read(
            record.location,
            question,
            answer,
            None if identity is None else clean(str(identity)),
            _own_style(fields),
            bool({"data_source", "reward_model"} & fields.keys()),
            tuple(others),
            self._about_data_source(fields),
        )

    def _about_data_source(self, fields: dict[str, Any]) -> tuple[str, ...]:
        ours = f"data_source is {self._data_source!r}"
        told = [] if self._named else [f"{ours}, the name of the source; --name gives another"]
        present, own = lookup(fields, "data_source")
        if present and own != self._data_source:
            told.append(f"{ours}; the row's own is {'empty' if is_missing(own) else 'another'}")
        return tuple(told)

    def _row(self, read: _Read) -> dict[str, Any]:
        question = read.question
        truth, style, told, problem = self._answer(read)
        digest = question_hash(question.text, question.passage, question.options.values())
        self._check_new(read.location, question, digest, truth)
        if problem is None and truth is not None:
            reason = self._why_not(truth, style)
            problem = RowError("answer cannot be verified", f"as {style}: {reason}") if reason else None
        if problem is not None:
            if self._needs_answers:
                if isinstance(problem, UndecidedLabel):
                    raise UserError(f"{', '.join(self._settings.sources) or self._data_source}: {problem}")
                raise problem
            if problem.reason != "no answer":
                decides = ", which --label-base decides" if isinstance(problem, UndecidedLabel) else ""
                self._monitoring[problem.reason + decides] += 1
            truth = None
        prompt = self._prompt(read, style)
        if self._tokens and (tokens := self._tokens(prompt)) > (self._settings.max_prompt_tokens or 0):
            raise RowError("prompt too long", f"{tokens} tokens")
        if read.identity is not None:
            self._ids[read.identity] += 1
        self._count(read, style, truth)
        self._told.update((*self._told_of_columns(read, truth), *(told if truth is not None else ()), *read.told))
        self._candidates.update(read.others)
        if style == "choice" and truth is not None:
            self._chosen[truth.partition(")")[0].strip("(")] += 1
        self._seen[self._dedup_key(question, digest)] = (read.location, truth)
        return {
            "data_source": self._data_source,
            "prompt": prompt,
            "ability": self._ability or style,
            "reward_model": {"style": style, "ground_truth": truth},
            "extra_info": {
                "id": read.identity,
                "origin": clean(read.location),
                "question_hash": digest,
                "options": list(question.options.values()) or None,
            },
        }

    def _answer(self, read: _Read) -> tuple[str | None, str, tuple[str, ...], RowError | None]:
        """(ground truth, verifier, what was guessed, what is wrong with it)."""
        given = None if self._verifier == "auto" else self._verifier
        question, answer = read.question, read.answer
        fallback = given or ("choice" if question.options else "grid" if question.header else "math")
        if isinstance(answer, RowError):
            return None, fallback, (), answer
        truth, told = answer.truth, list(answer.told)
        if answer.label is not None:
            try:
                truth = question.chosen(self._labels.letters(answer.column, answer.label))
            except RowError as error:
                return None, fallback, (), error
        style = given or answer.style or read.style
        if given is None:
            if style is not None:
                check_allowed([style], self._settings.allow_verifier, read.location, "--allow-verifier NAME")
            why = "the form of the row" if answer.style else "the row itself" if read.style else "its answer"
            style = style or guess_style(truth)
            told.append(f"verifier {style} is told by {why}; --verifier names one for all")
        return truth, style or fallback, tuple(told), None

    def _check_new(self, location: str, question: RawQuestion, digest: str, truth: str | None) -> None:
        """Raises RowError (or UserError, if asked to) for a question that is there already."""
        if self._settings.dedup != "off" and (seen := self._seen.get(self._dedup_key(question, digest))):
            first, other = seen
            conflict = truth is not None and other is not None and truth != other
            raise RowError("conflicting duplicate" if conflict else "duplicate", f"of {first}")
        whole = question_hash(question.text)
        for path, known in self._known.items():
            if digest in known or whole in known:
                if self._settings.overlap == "fail":
                    raise UserError(f"{location}: this question is also in {path}; take it out, or --overlap drop")
                raise RowError("overlap", f"with {path}")

    def _dedup_key(self, question: RawQuestion, digest: str) -> str:
        if self._settings.dedup == "exact":
            return repr((question.passage, question.text, question.options))
        return digest

    def _prompt(self, read: _Read, style: str) -> list[dict[str, str]]:
        template, question = self._template, read.question
        if template is None:
            verl_format = question.messages is not None and read.keeps_chat
            template = "keep" if verl_format else DEFAULT_TEMPLATES.get(style, "boxed")
        if template == "keep" and question.messages:
            return list(question.messages)
        unit = read.answer.unit if isinstance(read.answer, Answer) else ""
        asks = bool(unit) and unit not in question.text
        self._told["questions ask at their end for the answer in its unit"] += asks
        content = self._templates("plain" if template == "keep" else template).render(
            question=question.text + (f"\n\nGive the answer in {unit}." if asks else ""),
            passage=question.passage,
            options={} if _lists_options(question) else question.options,
            header=list(question.header),
        )
        before = question.messages[:-1] if question.messages else ()
        return [*before, {"role": "user", "content": content.strip()}]

    # ------------------------------------------------------------------ counting

    def _stop(self, location: str, error: RowError) -> None:
        """Raises UserError for a bad row, if asked to."""
        if error.reason not in BY_INTENT and self._settings.bad_rows == "fail":
            raise UserError(f"{location}: {error}; mend it, or --bad-rows skip leaves such rows out") from error

    def _leave_out(self, location: str, error: RowError, skipped: IO[str]) -> None:
        self._stop(location, error)
        self.summary.skipped[error.reason] += 1
        line = {"location": location, "reason": error.reason, "detail": error.detail}
        skipped.write(clean(json.dumps(line, ensure_ascii=False)) + "\n")

    def _count(self, read: _Read, style: str, truth: str | None) -> None:
        for role, name in _columns_of(read, truth).items():
            self.summary.columns.setdefault(role, Counter())[name] += 1
        self.summary.verifiers[style] += 1

    def _told_of_columns(self, read: _Read, truth: str | None) -> list[str]:
        """Which columns were taken that the user did not name."""
        used = _columns_of(read, truth)
        told = [f"{role} is taken from {name}" for role, name in used.items() if role not in self._columns.named]
        return told + list(read.question.choices.told)

    def _take_guesses(self) -> None:
        sentences = [f"{sentence} ({count} rows)" for sentence, count in self._told.items() if count]
        self.summary.guesses += [*sentences, *self._labels.told()]

    def _take_notes(self) -> None:
        notes = self.summary.notes
        for (role, taken, other), count in self._candidates.items():
            notes.append(
                f"{role} is taken from {taken}; {count} rows have something else in {other}, "
                f"which --{role} {other} would take"
            )
        answers = sum(self.summary.columns.get("answer", Counter()).values())
        if NO_ANSWERS in (self._settings.kind, self._settings.rest_as) and answers:
            names = ", ".join(self.summary.columns["answer"])
            if self._settings.drop_answers:
                notes.append(f"answers found in {names} are left out of unlabeled rows")
            else:
                notes.append(
                    f"{answers} answers found in {names}: unlabeled rows keep them for monitoring only "
                    "(--drop-answers leaves them out)"
                )
        for reason, count in self._monitoring.items():
            notes.append(f"{count} monitoring answers left out, the questions kept: {reason}")
        if len(self._chosen) == 1 and (count := self._chosen.total()) >= MANY:
            notes.append(
                f"the right option is {next(iter(self._chosen))} in all {count} rows with options: check the source"
            )
        twice = sum(1 for count in self._ids.values() if count > 1)
        if twice:
            notes.append(f"{twice} ids occur more than once; extra_info.index is unique")
        if conflicts := self.summary.skipped["conflicting duplicate"]:
            notes.append(f"{conflicts} duplicates have another answer than the row that was kept: check the source")


def _columns_of(read: _Read, truth: str | None) -> dict[str, str]:
    """The columns that were used, by role."""
    used = {"question": read.question.column}
    return used | ({"answer": read.answer.column} if truth is not None and isinstance(read.answer, Answer) else {})


def _columns(settings: Settings, chosen: Preset | None) -> Columns:
    roles = ("question", "answer", "options", "distractors", "passage", "id")
    given = {role: getattr(chosen, role) for role in roles if chosen and getattr(chosen, role)}
    return replace(Columns(), **{**given, **settings.columns}, named=frozenset(settings.columns))


def _lists_options(question: RawQuestion) -> bool:
    """Some sets give the options apart and within the question as well."""
    return all(
        re.search(rf"{letter}\s*[).:]\s*{re.escape(option)}", question.text)
        for letter, option in question.options.items()
    )


def _own_style(fields: dict[str, Any]) -> str | None:
    """The verifier that a row in verl's columns names, if it is one of ours or a function."""
    reward_model = fields.get("reward_model")
    style = reward_model.get("style") if isinstance(reward_model, dict) else None
    return style if style in STYLES or (style and ":" in style) else None


def _known_questions(path: Path, columns: Columns, strip: list[re.Pattern]) -> set[str]:
    """Hashes of the questions of a prepared file, or of any other local file, with and without passage and options."""
    if not path.exists():
        raise UserError(f"--against {path}: no such file; check the path")
    known: set[str] = set()
    columns = replace(Columns(), question=(*columns.question, *Columns().question))
    for source in find_sources([str(path)]):
        for record in source:
            stored = record.fields.get("extra_info")
            if isinstance(stored, dict) and stored.get("question_hash"):
                known.add(stored["question_hash"])
            try:
                if record.problem:
                    raise RowError("unreadable row", record.problem)
                question = read_question(record.fields, columns, strip=strip)
            except RowError as error:
                raise UserError(f"--against {path}: {record.location}: {error}") from error
            known.add(question_hash(question.text, question.passage, question.options.values()))
    return known


def _token_counter(settings: Settings):
    """Counts the tokens of a prompt under the tokenizer's chat template; ``None`` if there is no limit."""
    if settings.max_prompt_tokens is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--tokenizer {settings.tokenizer}: no tokenizer there ({reason}); give its folder") from error
    if not tokenizer.chat_template:
        raise UserError(f"--tokenizer {settings.tokenizer}: has no chat template, which verl needs; give one that has")
    return lambda prompt: len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))


def _stem(source: str) -> str:
    """The name of a file or folder without its ending, or a hub id."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    name = path.resolve().name
    return name.partition(".")[0] or name.strip(".") or "data"  # a folder may be hidden, or the root


# ---------------------------------------------------------------------- files


def _parts(rows: list[dict], settings: Settings) -> list[tuple[Path, str, list[dict]]]:
    """The sample and the rest, both in the order of the source."""
    if settings.sample is None:
        return [(settings.out, settings.kind, rows)]
    size = int(settings.sample) if settings.sample >= 1 else round(settings.sample * len(rows))
    if not 0 < size <= len(rows) - bool(settings.rest):
        raise UserError(f"--sample {settings.sample:g}: is {size} of {len(rows)} rows; choose fewer, or more than none")
    taken = set(random.Random(settings.seed).sample(range(len(rows)), size))
    parts = [(settings.out, settings.kind, [row for number, row in enumerate(rows) if number in taken])]
    if settings.rest and settings.rest_as:
        rest = [row for number, row in enumerate(rows) if number not in taken]
        parts.append((settings.rest, settings.rest_as, rest))
    return parts


def _write_parquet(outputs: Outputs, path: Path, kind: str, rows: list[dict], settings: Settings) -> None:
    table = []
    for index, row in enumerate(rows):
        reward_model = row["reward_model"]
        if kind == NO_ANSWERS and settings.drop_answers:
            reward_model = reward_model | {"ground_truth": None}
        extra_info = {"index": index, "split": kind, **row["extra_info"]}
        table.append(row | {"reward_model": reward_model, "extra_info": extra_info})
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), outputs.open(path).name)


def _meta(settings: Settings, chosen: Preset | None, sources: list[Source], summary: Summary) -> dict[str, Any]:
    return {
        "tempo_verl": __version__,
        "sources": [source.describe() for source in sources],
        "read": summary.read,
        "written": summary.written,
        "skipped": dict(summary.skipped),
        "verifiers": dict(summary.verifiers),
        "columns": summary.columns,
        "guesses": summary.guesses,
        "notes": summary.notes,
        "licence": chosen.licence if chosen else None,
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
    }


def _check(settings: Settings) -> None:
    """Settings that contradict each other."""
    outputs = [path for path in (settings.out, settings.rest) if path]
    for path in outputs:
        if path.suffix != ".parquet":
            raise UserError(f"--out {path}: must end in .parquet")
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
        if path.exists() and not settings.overwrite:
            raise UserError(f"{path}: exists already; choose another name, or --overwrite")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(f"--rest {settings.rest}: is the file of --out; give another")
    if (settings.rest is None) != (settings.rest_as is None) or (settings.rest and settings.sample is None):
        raise UserError("--rest FILE goes with --rest-as and --sample: it takes the rows that are not in the sample")
    for option, text in (("--name", settings.name), ("--ability", settings.ability)):
        if text is not None and not text.strip():
            raise UserError(f"{option} {text!r}: is empty; give a name, or leave the option out")
    if settings.label_base not in (None, *BASES):
        raise UserError(f"--label-base {settings.label_base}: unknown; there are {', '.join(BASES)}")
    sample = settings.sample
    if sample is not None and not (0 < sample < 1 or (sample >= 1 and float(sample).is_integer())):
        raise UserError(f"--sample {sample:g}: give a whole number of rows, or a share between 0 and 1")
    if (settings.max_prompt_tokens is None) != (settings.tokenizer is None):
        raise UserError("--max-prompt-tokens N goes with --tokenizer PATH: it counts the model's own tokens")
    if settings.tolerance and settings.verifier != "number":
        raise UserError(f"--tolerance {settings.tolerance}: only --verifier number has one")
    if settings.drop_answers and NO_ANSWERS not in (settings.kind, settings.rest_as):
        raise UserError("--drop-answers: only --as unlabeled may be without answers")
