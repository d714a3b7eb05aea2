"""The measured figures in the documents are those that were recorded."""

import json
import re
import shutil

import pytest

import tables
from tables import PART, PARTS, RESULTS, ROOT, Record, TablesError

A_RESULT = f"{tables.MACHINE}/never-slower.json"


@pytest.fixture
def copy(tmp_path):
    """A root with copies of the documents and results."""
    for path in tables.documents(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS, ignore=shutil.ignore_patterns("*.png"))
    return tmp_path


@pytest.fixture
def small(tmp_path):
    """Writes a root of one document, with one part, and one result."""

    def write(document, result=None):
        (tmp_path / "README.md").write_text(document)
        if result is not None:
            path = tmp_path / RESULTS / A_RESULT
            path.parent.mkdir(parents=True)
            path.write_text(result)
        return tmp_path

    return write


def test_the_documents_say_what_is_recorded():
    assert tables.update(ROOT, check=True) == [], "run make tables"


def test_every_part_is_in_a_document():
    text = "".join(path.read_text(encoding="utf-8") for path in tables.documents(ROOT))
    assert {match.group(2, 3) for match in PART.finditer(text)} == set(PARTS)


def with_another_digit(match):
    """The part, its last digit another one."""
    digit = re.compile(r"\d(?=\D*$)")
    return match[1] + digit.sub(lambda found: str(9 - int(found[0])), match[4]) + match[5]


def test_a_changed_figure_is_found_in_every_part_and_mended(copy, capsys):
    before = {path: path.read_text(encoding="utf-8") for path in tables.documents(copy)}
    for path, text in before.items():
        path.write_text(PART.sub(with_another_digit, text), encoding="utf-8")
    assert tables.main(["--check"], root=copy) == 1
    shown = capsys.readouterr().out
    assert all(f": {kind} {name} is not what is recorded\n" in shown for kind, name in PARTS)
    assert tables.main([], root=copy) == 0
    assert {path: path.read_text(encoding="utf-8") for path in before} == before
    assert tables.main(["--check"], root=copy) == 0


def test_a_new_result_is_found_and_all_its_rows_are_written(copy, capsys):
    path = copy / RESULTS / A_RESULT
    result = json.loads(path.read_text())
    row = result["never_slower"][0]
    result["never_slower"].append(row | {"part": "a new one", "speed": 0.5})
    path.write_text(json.dumps(result))
    assert tables.main(["--check"], root=copy) == 1
    assert capsys.readouterr().out == "README.md: table never-slower is not what is recorded\n"
    assert tables.main([], root=copy) == 0
    assert (
        f"| a new one | {row['way']} | {row['against']} | 0.500 |"
        in (copy / "README.md").read_text()
    )


EMPTY = "<!-- table: never-slower -->\n<!-- end -->\n"


@pytest.mark.parametrize(
    ("document", "result", "message"),
    [
        (EMPTY, None, f"{RESULTS / A_RESULT} is missing"),
        (EMPTY, "{", f"{RESULTS / A_RESULT} is not JSON"),
        (EMPTY, "{}", f"{A_RESULT} has no value for never_slower"),
        (EMPTY, '{"never_slower": null}', f"{A_RESULT} has no value for never_slower"),
        (EMPTY, '{"never_slower": [{}]}', f"{A_RESULT}, never_slower[0], has no value for part"),
        (EMPTY.replace("table:", "figures:"), "{}", "there is no figures 'never-slower'"),
        (EMPTY.replace("<!-- end -->", ""), "{}", "a part has no <!-- end -->"),
        (EMPTY.replace("<!-- end", EMPTY + "<!-- end"), "{}", "is inside another part"),
    ],
)
def test_what_is_missing_is_named(document, result, message, small, capsys):
    assert tables.main(["--check"], root=small(document, result)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: README.md: ")
    assert message in error


def test_a_missing_row_is_named():
    record = Record(name="a.json", value={"rows": [{"kind": "code", "draft": 4}]})
    with pytest.raises(TablesError, match=r"a\.json has no row in rows with kind='code', draft=8"):
        record.row("rows", kind="code", draft=8)
    with pytest.raises(TablesError, match=r"a\.json has no value for rows\.x"):
        record.at("rows", "x")


@pytest.mark.parametrize(
    ("share", "words"), [(0.0105, "1.1 %"), (-0.004, "−0.4 %"), (-1e-4, "0.0 %"), (0.0, "0.0 %")]
)
def test_percent(share, words):
    assert tables.percent(share) == words
