"""What the package's HTML pages share: the style, the head, the escaping, thumbnails, and files written whole.

A page is one file that needs nothing else. It has no script and loads nothing, which its content policy enforces.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from embervlm import __version__
from embervlm.data.images import ImageError, read_picture
from embervlm.data.sample import DataError, Picture

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1b1a; --soft: #63605b; --line: #dcd8d2; --box: #f7f5f2;
  --taught: #dff3e2; --taught-line: #1b7f3b; --control: #dfe8fb; --control-text: #1d428f; --good: #1b7f3b;
  --warn: #8a5a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #171614; --text: #ebe8e3; --soft: #a8a39b; --line: #3b3834; --box: #211f1c;
    --taught: #143a20; --taught-line: #5fd283; --control: #1f2f52; --control-text: #b3cbff; --good: #5fd283;
    --warn: #f0b84a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; }
.soft, caption, figcaption, dt { color: var(--soft); font-size: .875rem; }
.path, code { font-family: ui-monospace, monospace; font-size: .875em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
.scroll:focus-visible { outline: 2px solid var(--control-text); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; }
th.name { text-align: left; position: sticky; left: 0; background: var(--page); }
tbody tr:last-child > * { border-bottom: 2px solid var(--line); }
tfoot > tr > * { border-bottom: 0; font-weight: 700; }
.verdicts { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); padding: 0;
  list-style: none; }
.verdicts li { border: 1px solid var(--line); border-left: .35rem solid var(--tone); border-radius: 8px;
  padding: .75rem 1rem; background: var(--box); }
.verdicts b { display: block; font-size: 1.15rem; color: var(--tone); }
.good { --tone: var(--good); } .warn { --tone: var(--warn); } .bad { --tone: var(--bad); }
.none { --tone: var(--soft); }
article { display: grid; grid-template-columns: 12rem minmax(0, 1fr); gap: 1rem; border: 1px solid var(--line);
  border-radius: 8px; padding: 1rem; margin: .75rem 0; background: var(--box); break-inside: avoid; }
figure { margin: 0; } figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { overflow-wrap: anywhere; margin-top: .35rem; }
.unreadable { border: 1px dashed var(--bad); border-radius: 4px; padding: .75rem; color: var(--bad); font-size: .875rem;
  overflow-wrap: anywhere; }
.no-picture { border: 1px dashed var(--line); border-radius: 4px; padding: .75rem; color: var(--soft);
  font-size: .875rem; }
@media (max-width: 40rem) { article { grid-template-columns: minmax(0, 1fr); } body { padding-top: 1rem; }
  th, td { padding: .4rem; } }
@media print { @page { size: A4 landscape; margin: 12mm; } body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; border: 0; } th.name { position: static; } h2, h3 { break-after: avoid; }
  table { font-size: 8pt; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

#: What closes a page that :func:`head` has opened.
FOOT = "</body>\n</html>\n"


def head(title: str, style: str = "") -> str:
    """The page's beginning, up to the open body.

    Args:
        title: of the page, not yet escaped.
        style: rules of this page alone, after the shared ones.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="embervlm {__version__}">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
    )


def escaped(value: object) -> str:
    """Text for a page: escaped, and what cannot be printed or turns the writing direction written out."""
    shown = "".join(
        each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in str(value).replace("\r", "")
    )
    return escape(shown)


def picture_figure(source: Picture | None, folder: Path, longest: int) -> str:
    """A picture as a page shows it: small, within the page; or why it cannot be shown.

    Args:
        source: where it is, or None where there is none.
        folder: of the data; the caption names the picture within it.
        longest: the longest side of what is shown, in pixels.
    """
    if source is None:
        return '<p class="no-picture">no picture</p>\n'
    name = str(source).removeprefix(f"{folder.resolve()}/")
    try:
        picture = read_picture(source)
    except (ImageError, DataError) as error:
        reason = str(error).removeprefix(f"{source}: ")
        return (
            f'<figure><div class="unreadable">cannot be read: {escaped(reason)}</div>'
            f"<figcaption>{escaped(name)}</figcaption></figure>\n"
        )
    width, height = picture.size
    picture.thumbnail((longest, longest))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{picture.width}" height="{picture.height}"'
        f' alt="{escaped(Path(name).name)}">'
        f"<figcaption>{escaped(name)}, {width} × {height}</figcaption></figure>\n"
    )


def write_whole(contents: Mapping[Path, Iterable[str] | bytes]) -> None:
    """Write files that belong together: no file has its name before all of them are complete.

    Args:
        contents: of each file, text in parts or bytes; they get their names in this order.

    Raises:
        OSError: one cannot be written.
    """
    # As new files would have them; mkstemp's are for the owner alone.
    mask = os.umask(0)
    os.umask(mask)
    written: dict[Path, Path] = {}
    try:
        for file, content in contents.items():
            handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.absolute().parent)
            written[file] = Path(name)
            with os.fdopen(handle, "wb") as temporary:
                parts = (content,) if isinstance(content, bytes) else (part.encode() for part in content)
                temporary.writelines(parts)
            written[file].chmod(0o666 & ~mask)
        for file, temporary_file in written.items():
            temporary_file.replace(file)
    except BaseException:
        for temporary_file in written.values():
            temporary_file.unlink(missing_ok=True)
        raise
