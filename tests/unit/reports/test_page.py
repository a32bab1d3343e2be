"""The HTML report in Chromium: what it does with a reader's clicks, and what it does not do for a stranger's text."""

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chromium import CHROMIUM, QUIET
from comparisons import a_comparison, pictures_for
from darkroom.types import Comparison
from service.reports import difference_map, html_report, thumbnail

HOSTILE = (
    "</script><script>document.title = 'pwned'</script>",
    '"><img src=https://tracker.example/x.png onerror="document.title = \'pwned\'">',
    "' autofocus onfocus='document.title = `pwned`' {{ 7 * 7 }} <!-- \n狐 🦊",
)
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"

# First in the page, so that it hears of every refusal; what it tells ends up in the DOM that is dumped.
WATCH = """
window.refused = [];
addEventListener('securitypolicyviolation', event => refused.push(event.blockedURI));
"""
TELL = """
addEventListener('load', () => {
  let told;
  try { told = (() => { BODY })(); } catch (error) { told = {error: String(error)}; }
  const line = document.createElement('pre');
  line.id = 'told';
  line.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(told))));
  document.body.append(line);
});
"""
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const texts = [...document.querySelectorAll('body *')].filter(element => element.checkVisibility()
  && [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
const found = texts.map(element => {
  const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${element.tagName}.${element.className}`];
});
return {count: found.length, paper: ground(document.body), worst: found.sort((a, b) => a[0] - b[0])[0]};
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path to read a report with")


def page_of(comparison: Comparison) -> str:
    pictures = pictures_for(comparison)
    baselines = {
        (cell.prompt, cell.seed): cell.index
        for cell in comparison.cells
        if cell.arm == comparison.plan.baseline
    }
    maps = {}
    for cell in comparison.cells:
        baseline = baselines[cell.prompt, cell.seed]
        if cell.index != baseline and {cell.index, baseline} <= pictures.keys():
            maps[cell.index] = thumbnail(difference_map(pictures[cell.index], pictures[baseline]))
    return html_report(comparison, {index: thumbnail(picture) for index, picture in pictures.items()}, maps)


def told_by_chromium(folder: Path, page: str, body: str, *switches: str) -> tuple[Any, str]:
    """What the script `body` returns in the page, and the lines of the console.

    The two scripts of the test are let in by their own hashes; the page's policy is otherwise as it was.
    """
    tell = TELL.replace("BODY", body)
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in (WATCH, tell)
    )
    page = re.sub(r"(script-src '[^']+')", lambda found: found[1] + hashes, page, count=1)
    page = page.replace("<title>", f"<script>{WATCH}</script><title>", 1)
    page = page.replace("</body>", f"<script>{tell}</script></body>")
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    command = [
        str(CHROMIUM),
        *QUIET,
        "--enable-logging=stderr",
        *switches,
        f"--user-data-dir={folder / 'profile'}",
        file.as_uri(),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = re.search(r'<pre id="told">([^<]*)</pre>', ended.stdout)
    assert told, ended.stdout[-500:] + ended.stderr[-500:]
    console = "\n".join(line for line in ended.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(base64.b64decode(told[1])), console


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(a_comparison(prompts=3, seeds=2, failed=(4,), waiting=(11,)))


def test_text_of_callers_is_shown_and_never_run(tmp_path):
    hostile = page_of(a_comparison(HOSTILE, HOSTILE, 2, failed=(1,), name=HOSTILE[0], warnings=list(HOSTILE)))
    told, console = told_by_chromium(
        tmp_path,
        hostile,
        """return {
          title: document.title,
          heading: document.querySelector('h1').textContent,
          captions: [...document.querySelectorAll('.pictures caption')].map(e => e.textContent),
          foreign: [...document.images].filter(image => !/^data:/.test(image.getAttribute('src') ?? 'data:')).length,
          scripts: document.scripts.length,
          refused,
          requests: performance.getEntriesByType('resource').map(entry => entry.name).filter(n => !/^data:/.test(n)),
        };""",
    )
    assert told["title"] == told["heading"] == HOSTILE[0]
    assert [" ".join(caption.split()) for caption in told["captions"]] == [
        " ".join(t.split()) for t in HOSTILE
    ]
    assert (told["foreign"], told["scripts"]) == (0, 3)
    assert (told["refused"], told["requests"], console) == ([], [], "")


def test_a_request_to_anywhere_would_have_been_refused_and_seen(tmp_path, page):
    leaky = page.replace("<main>", '<main><img src="https://tracker.example/x.png"><b onclick="1">b</b>')
    told, console = told_by_chromium(tmp_path, leaky, "return refused;")
    assert any("tracker.example" in uri for uri in told)
    assert "Content Security Policy" in console


def test_filters_hide_what_is_not_asked_for(tmp_path, page):
    told, _ = told_by_chromium(
        tmp_path,
        page,
        """
        const shown = () => [...document.querySelectorAll('.pictures td')].filter(e => e.checkVisibility())
          .map(e => [+e.closest('table').dataset.prompt, +e.closest('tr').dataset.seed, +e.dataset.arm].join());
        const set = (selector, value) => {
          const control = document.querySelector(selector);
          if (control.type === 'checkbox') control.checked = value; else control.value = value;
          control.dispatchEvent(new Event('change'));
        };
        const steps = {all: shown()};
        set('#filter-prompt', '1');
        steps.prompt = shown();
        set('#filter-seed', '0');
        steps.seed = shown();
        set('[name=filter-arm][value="2"]', false);
        steps.arm = shown();
        steps.count = document.querySelector('#filter-count').textContent;
        document.querySelector('#filter-reset').click();
        steps.reset = shown();
        return steps;""",
    )
    everything = [f"{prompt},{seed},{arm}" for prompt in range(3) for seed in range(2) for arm in range(3)]
    assert told["all"] == told["reset"] == everything
    assert told["prompt"] == [place for place in everything if place.startswith("1,")]
    assert told["seed"] == ["1,0,0", "1,0,1", "1,0,2"]
    assert told["arm"] == ["1,0,0", "1,0,1"]
    assert told["count"] == "2 of 18 shown"


def test_slider_uncovers_one_arm_beside_the_other(tmp_path, page):
    told, _ = told_by_chromium(
        tmp_path,
        page,
        """
        const find = selector => document.querySelector(selector);
        const set = (selector, value, type) => {
          find(selector).value = value;
          find(selector).dispatchEvent(new Event(type, {bubbles: true}));
        };
        const source = cell => find(`td[data-cell="${cell}"] img`)?.src;
        const state = () => ({
          under: find('.frame .under').src, over: find('.frame .over').src,
          cut: getComputedStyle(find('.frame .over')).clipPath,
          map: find('.over-map').hidden ? null : find('.over-map img').src, words: find('.frame .over').textContent,
          left: find('.tag.left').textContent, right: find('.tag.right').textContent,
        });
        const first = state();
        set('.frame input', '20', 'input');
        const moved = state();
        set('#beside-right', '2', 'change');
        const other = state();
        find('#beside-swap').click();
        const swapped = state();
        find('#beside-on').click();
        set('#beside-right', '1', 'change');
        return {first, moved, other, swapped, failed: state(), seed: find('#beside-seed').value,
          sources: [0, 1, 2].map(source), map: find('#cell-1 .map').src,
          pixelated: getComputedStyle(find('.frame .under')).imageRendering};""",
    )
    sources = told["sources"]
    assert [told["first"]["under"], told["first"]["over"]] == sources[:2]
    assert (told["first"]["cut"], told["moved"]["cut"]) == (
        "inset(0px 0px 0px 50%)",
        "inset(0px 0px 0px 20%)",
    )
    assert told["first"]["map"] == told["map"]
    assert [told["other"]["under"], told["other"]["over"]] == [sources[0], sources[2]]
    assert [told["swapped"]["under"], told["swapped"]["over"]] == [sources[2], sources[0]]
    assert told["swapped"]["right"] == told["first"]["left"] == "nothing"
    assert told["swapped"]["map"] is None, "the baseline has no difference to itself"
    assert (told["seed"], told["failed"]["words"]) == (
        "1",
        "failed: the decoded picture is black; another seed or a lower guidance may help",
    )
    assert told["pixelated"] == "pixelated"


def test_picture_opens_its_measurements_and_its_recipe(tmp_path, page):
    told, console = told_by_chromium(
        tmp_path,
        page,
        """
        const find = selector => document.querySelector(selector), dialog = find('dialog');
        find('td[data-cell="2"] a').click();
        const article = dialog.querySelector('article');
        const opened = {
          open: dialog.open, arm: article.querySelector('h3').textContent,
          request: article.querySelector('pre').textContent, receipt: article.querySelector('details pre').textContent,
          picture: article.querySelector('.shown img').src === find('td[data-cell="2"] img').src,
          measured: [...article.querySelectorAll('.measured tbody th')].map(e => e.textContent),
        };
        article.querySelector('.to-slider').click();
        dialog.dispatchEvent(new Event('close'));
        const beside = ['prompt', 'seed', 'left', 'right'].map(name => find(`#beside-${name}`).value);
        return {...opened, beside, closed: !dialog.open, home: find('#cell-2').parentElement.tagName, focusable:
          [...document.querySelectorAll('.picture')].every(e => e.tabIndex === 0)};""",
    )
    comparison = a_comparison(prompts=3, seeds=2)
    cell = comparison.cells[2]
    assert told["open"]
    assert (told["arm"], told["picture"], told["home"], told["focusable"]) == (
        cell.arm,
        True,
        "DETAILS",
        True,
    )
    assert (told["closed"], told["beside"]) == (True, ["0", "0", "0", "2"])
    assert type(cell.request).model_validate_json(told["request"]) == cell.request
    assert cell.receipt is not None
    assert type(cell.receipt).model_validate_json(told["receipt"]) == cell.receipt
    assert told["measured"] == [info.title for info in comparison.metrics]
    assert console == ""


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(tmp_path, page, scheme):
    told, _ = told_by_chromium(
        tmp_path,
        page.replace("<details>", "<details open>"),
        CONTRAST,
        scheme,
    )
    assert told["count"] > 200
    assert (sum(told["paper"][:3]) < 3 * 60) == (scheme == DARK), "the scheme was not the one asked for"
    assert told["worst"][0] >= 4.5, told["worst"]


def test_report_fits_a_phone_and_the_frame_of_a_notebook(tmp_path, page):
    framed = (
        '<!doctype html><meta charset="utf-8"><title>notebook</title><body>'
        f'<iframe style="width: 380px; height: 900px; border: 0" srcdoc="{html.escape(page)}"></iframe></body>'
    )
    told, console = told_by_chromium(
        tmp_path,
        framed,
        """
        const inside = document.querySelector('iframe').contentDocument, root = inside.documentElement;
        const boxes = [...inside.querySelectorAll('.wrap *')].filter(e => e.checkVisibility() && !e.closest('.scroll'));
        return {width: root.clientWidth, scrolls: root.scrollWidth, script: root.className,
          widest: Math.max(...boxes.map(e => e.getBoundingClientRect().right))};""",
    )
    assert (told["script"], console) == ("js", "")
    assert told["scrolls"] == told["width"] <= 380
    assert told["widest"] <= told["width"]
