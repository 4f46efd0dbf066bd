"""The errors on the guide's page are those of the rendered code."""

import ast
import builtins
import re
from collections.abc import Iterator

from conftest import MODULES, TEMPLATE, source

PAGE = TEMPLATE / "docs" / "reference" / "errors.md"

# How the code tells errors: what it calls with them, and the statements in which they stand.
CALLS = {"finding", "warn", "warning", "error", "refuse", "append", "_report", "print", "__init__"}
STATEMENTS = (ast.Raise, ast.Return, ast.Yield, ast.Assign)

NO_ERRORS = {
    "# No telemetry, and no prompt for an e-mail address.",
    "FINDING  \0: \0",  # errors of this page follow
    "Not deployed: \0",
    "Preparing \0 ...",
    "ok       \0: \0",
    "Done in \0 s.",
    "Reloads when you edit.",
    "The Dagster context was sent in the event, the body of the request.",
    "The function has ended.",
    "The function may be running, may have ended, may never have begun.",
    "The function was not reached.",
    "[\0] Custom message: \0",
}

VALUE = "\0"  # stands for what a message has of the moment
FIRST_SENTENCE = re.compile(r"(?:\0\. )?\S.*?(?:[.?](?= |\n|$)|: \0$)")


def messages() -> set[str]:
    """The first sentence of each error in the code."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(source(path))):
            found.update(told(node))
    return {text for text in found if len(text.replace(VALUE, "").split()) >= 2} - NO_ERRORS


def messages_elsewhere() -> set[str]:
    """The same, of Terraform's files and of the recipes."""
    template = TEMPLATE / "template"
    terraform = "\n".join(file.read_text() for file in (template / "infra").glob("*.tf*"))
    texts = re.findall(r'error_message = "(.+)"', terraform)
    texts += re.findall(r'echo "(.+)"', (template / "justfile.jinja").read_text())
    sentences = [re.match(r".+?(?:[.](?= |$)|: (?=gh |glab )|$)", text) for text in texts]
    return {sentence[0] for sentence in sentences if sentence}


def told(node: ast.AST) -> Iterator[str]:
    """The first sentences of the errors that a piece of code tells."""
    match node:
        case ast.Call(func=function, args=arguments) if name(function) in CALLS:
            # The first argument of a finding is the error, the second is the fix.
            parts = arguments[:1] if name(function) == "finding" else arguments
            found = [text for part in parts for text in texts(part)]
        case ast.Raise(exc=ast.Call(func=function)) if name(function) == "finding":
            return
        case _ if isinstance(node, STATEMENTS):
            found = list(texts(node))
        case _:
            return
    for text in found:
        if sentence := FIRST_SENTENCE.match(text):
            yield sentence[0].replace("`", "")
        elif isinstance(node, ast.Raise) and " " in text:
            yield text


def texts(node: ast.AST) -> Iterator[str]:
    """The texts in a piece of code, with `VALUE` for what is put into them."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else VALUE for p in parts)
        case ast.keyword(arg="description" | "must_be"):
            return
        case _:
            for child in ast.iter_child_nodes(node):
                yield from texts(child)


def name(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(".+?".join(map(re.escape, filter(None, message.split(VALUE)))))


def error_classes() -> set[str]:
    """The exceptions that the rendered code defines, and that a user can see."""
    return {
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(source(path)))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error") and node.name[0] != "_"
    }


def test_each_class_of_errors_is_on_the_page() -> None:
    named = set(re.findall(r"`([A-Za-z.]+Error)`", PAGE.read_text()))

    assert error_classes() - named == set()
    assert {name for name in named if hasattr(builtins, name)} | error_classes() >= named


def test_each_text_on_the_page_is_in_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    patterns = [pattern(message) for message in messages() | messages_elsewhere()]

    assert len(rows) > 50
    assert [row for row in rows if not any(each.search(row) for each in patterns)] == []
