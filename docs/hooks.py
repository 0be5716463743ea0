"""Hooks of mkdocs.yml: links out of docs/ into the repository, and pages that are there only at times."""

import logging
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\((\.\./[^)\s#]*)(?:#[^)\s]*)?\)")
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


def on_page_markdown(markdown, page, config, **_):
    """[text](../egs/mini/ssl) -> text (`egs/mini/ssl`); a warning, so an error when strict, if nothing is there."""
    docs = Path(config["docs_dir"]).resolve()

    def plain(link: re.Match) -> str:
        target = Path(os.path.normpath(docs / Path(page.file.src_uri).parent / link[2]))
        if target.is_relative_to(docs):
            return link[0]
        path = os.path.relpath(target, docs.parent)
        if not (ROOT / path).exists():
            log.warning("%s: %s leads to %s, which is not there", page.file.src_uri, link[2], path)
        return f"`{path}`" if link[1].strip("`") in (path, link[2]) else f"{link[1]} (`{path}`)"

    return LINK.sub(plain, markdown)
