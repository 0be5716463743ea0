"""Hooks of mkdocs.yml: links out of docs/ into the repository, and pages that are there only at times."""

import logging
import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\((\.\./[^)\s#]*)(?:#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks")


def on_config(config):
    """Nav entries for config.md and experiments/*.md, where they exist."""
    docs = Path(config["docs_dir"])
    if (docs / "config.md").is_file():
        use = next(entry["Use"] for entry in config["nav"] if "Use" in entry)
        use.append({"Config": "config.md"})
    pages = [p.relative_to(docs).as_posix() for p in docs.glob("experiments/*.md")]
    if pages:  # index.md first
        pages.sort(key=lambda page: (not page.endswith("/index.md"), page))
        config["nav"].insert(-1, {"Experiments": pages})


def outside(page: str, link: str, docs: Path) -> str | None:
    """The path in the repository that a link of a page leads to; None inside docs/."""
    path = os.path.relpath(os.path.normpath(docs / Path(page).parent / link), docs.parent)
    return None if Path(path).parts[0] == docs.name else path


def on_files(files, config):
    """Pictures outside docs/ that pages show become files of the site."""
    docs = Path(config["docs_dir"]).resolve()
    for page in list(files.documentation_pages()):
        for picture, _, link in LINK.findall(page.content_string):
            path = outside(page.src_uri, link, docs)
            if picture and path and (ROOT / path).is_file() and not files.get_file_from_path(path):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown, page, config, **_):
    """[text](../egs/mini/ssl) -> text (`egs/mini/ssl`); a warning, so an error when strict, if nothing is there."""
    docs = Path(config["docs_dir"]).resolve()

    def plain(found: re.Match) -> str:
        picture, text, link = found.groups()
        path = outside(page.file.src_uri, link, docs)
        if path is None:
            return found[0]
        if not (ROOT / path).exists():
            log.warning("%s: %s leads to %s, which is not there", page.file.src_uri, link, path)
        if picture:
            return f"![{text}]({os.path.relpath(path, Path(page.file.src_uri).parent)})"
        return f"`{path}`" if text.strip("`") in (path, link) else f"{text} (`{path}`)"

    return LINK.sub(plain, markdown)
