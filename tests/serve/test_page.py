"""The server's page in Chromium: a real server, a real browser, and no complaint of either."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from serving import Running, picture, serving

sys.path.insert(0, str(Path(__file__).parent))
from test_life import eventually, free, slowed

playwright = pytest.importorskip("playwright.sync_api", reason="the extra heavy")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
expect = playwright.expect

Open = Callable[..., Any]
WIDE, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        args = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Running]:
    with serving(tiny_bundle) as running:
        yield running


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """opened(server, ...): the page, ready; at the end, neither the console nor the content policy has complained."""
    said: list[str] = []
    contexts = []

    def open_page(server: Running, size: tuple[int, int] = WIDE, scheme: str = "light", ready: bool = True) -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size == PHONE
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.address)
        if ready:
            expect(page.locator("#model")).to_contain_text("room for 2,048 tokens")
        return page

    open_page.expected = []  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    left = [text for text in said if not any(known in text for known in open_page.expected)]  # type: ignore[attr-defined]
    assert left == []


def choose(page: Any, *contents: bytes) -> None:
    files = [{"name": f"p{i}.png", "mimeType": "image/png", "buffer": content} for i, content in enumerate(contents)]
    page.set_input_files("#files", files)
    expect(page.locator("#view")).to_be_visible()


def ask(page: Any, question: str = "What is this?", answers: int = 1) -> Any:
    """Ask with the Enter key, and wait for that many answers; the newest one."""
    page.fill("#question", question)
    page.keyboard.press("Enter")
    expect(page.locator("#log .stages")).to_have_count(answers, timeout=30_000)
    return page.locator("#log > li").last


def stub(page: Any, text: str, **last: Any) -> list[dict[str, Any]]:
    """Answer chat completions with `text` in pieces; the requests' bodies."""
    bodies: list[dict[str, Any]] = []
    timings = {"preprocess_ms": 10, "encode_ms": 20, "image_n": 64, "cache_n": 5, "prompt_n": 80, "prompt_ms": 30,
               "predicted_n": 3, "predicted_ms": 40, "predicted_per_second": 75.0}  # fmt: skip
    pieces = [{"delta": {"role": "assistant", "content": ""}}, *({"delta": {"content": char}} for char in text)]
    events = [{"choices": [{**piece, "finish_reason": None}]} for piece in pieces]
    end = {"choices": [{"delta": {}, "finish_reason": last.pop("reason", "stop")}], "timings": timings, "edgevlm": last}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, end]) + "data: [DONE]\n\n"

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", answer)
    return bodies


# --- the conversation --------------------------------------------------------------------------------------


def test_asked_answered_and_asked_again(opened: Open, server: Running) -> None:
    """What the page shows is what the server says to the same messages; a follow-up carries the whole conversation."""
    page = opened(server)
    choose(page, picture(1))
    page.click("#more summary")
    page.fill("#tokens", "6")
    first = ask(page)
    url = f"data:image/png;base64,{base64.b64encode(picture(1)).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]

    def said() -> str:
        text: str = server.post({"messages": messages, "max_tokens": 6}).json()["choices"][0]["message"]["content"]
        return text

    expected = said()
    assert first.locator(".answer").text_content() == expected
    expect(first.locator(".aside")).to_contain_text("'Most tokens'")
    second = ask(page, "And what else?", 2)
    messages += [{"role": "assistant", "content": expected}, {"role": "user", "content": "And what else?"}]
    assert second.locator(".answer").text_content() == said()
    shown = [row.text_content() for row in second.locator(".stages > div").all()]
    assert [re.match("[a-z]+", row)[0] for row in shown] == ["preprocess", "encode", "prefill", "decode"]  # type: ignore[index]
    assert "image token" in shown[1] and "kept" in shown[2] and "6 tokens" in shown[3] and "/s" in shown[3]
    widths = [part.bounding_box()["width"] for part in second.locator(".bar span").all()]
    assert len(widths) == 4 and min(widths) >= 2
    assert "tokens used" in page.text_content("#model")
    page.click("#new")
    expect(page.locator("#log > li")).to_have_count(0)
    expect(page.locator("#view")).to_be_hidden()
    expect(page.locator("#question")).to_be_focused()


def test_pasted_dropped_and_several(opened: Open, server: Running) -> None:
    page = opened(server)
    bodies = stub(page, "two")
    give = """([kind, data]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), given = new DataTransfer();
        given.items.add(new File([bytes], `${kind}.png`, {type: "image/png"}));
        const always = {bubbles: true, cancelable: true};
        document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", {clipboardData: given, ...always})
            : new DragEvent(kind, {dataTransfer: given, ...always}));
    }"""
    page.evaluate(give, ["dragover", base64.b64encode(picture(1)).decode()])
    expect(page.locator("body")).to_have_class("over")
    page.evaluate(give, ["drop", base64.b64encode(picture(1)).decode()])
    expect(page.locator("#view")).to_be_visible()
    page.evaluate(give, ["paste", base64.b64encode(picture(2)).decode()])
    expect(page.locator("#strip li")).to_have_count(2)
    choose(page, picture(3))
    expect(page.locator("#strip li")).to_have_count(3)
    page.click("text=Remove")
    expect(page.locator("#strip li")).to_have_count(2)
    ask(page, "Which?")
    sent = [part["image_url"]["url"] for part in bodies[0]["messages"][0]["content"] if part["type"] == "image_url"]
    assert [base64.b64decode(url.partition(",")[2]) for url in sent] == [picture(1), picture(2)], "as they are"
    page.set_input_files("#files", [{"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"}])
    expect(page.locator("#trouble")).to_contain_text("'a.txt' is no picture")


def test_the_camera(opened: Open, server: Running) -> None:
    page = opened(server)
    bodies = stub(page, "green")
    page.click("#shoot")
    expect(page.locator("#take")).to_be_focused()
    page.wait_for_timeout(300)
    page.click("#take")
    expect(page.locator("#camera")).to_be_hidden()
    expect(page.locator("#caption")).to_contain_text("camera.jpg")
    ask(page)
    head, _, data = bodies[0]["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64" and base64.b64decode(data).startswith(b"\xff\xd8")
    assert page.evaluate("document.querySelector('#video').srcObject === null"), "its light is off"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})", "secure pages only"),
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }",
            "allow it",
        ),
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError') }",
            "No camera",
        ),
    ],
)
def test_no_camera_is_one_sentence(change: str, sentence: str, opened: Open, server: Running) -> None:
    page = opened(server)
    page.evaluate(f"() => {{ {change} }}")
    page.click("#shoot")
    expect(page.locator("#trouble")).to_contain_text(sentence)
    expect(page.locator("#camera")).to_be_hidden()


def test_an_answer_can_be_stopped(opened: Open, tiny_bundle: Path) -> None:
    """The server stops, too, and is there for the next question."""
    with serving(tiny_bundle) as server:
        steps = slowed(server, 0.03)
        page = opened(server)
        choose(page, picture(1))
        page.click("#more summary")
        page.fill("#tokens", "1500")
        page.fill("#temperature", "1")
        page.fill("#question", "Tell a long story.")
        page.keyboard.press("Enter")
        expect(page.locator("#log .answer")).not_to_be_empty()
        expect(page.locator("#log > li")).to_have_attribute("aria-busy", "true")
        expect(page.locator("#send")).to_be_hidden()
        page.click("#stop")
        expect(page.locator("#log .aside")).to_contain_text("not part of the conversation")
        expect(page.locator("#question")).to_have_value("Tell a long story.")
        expect(page.locator("#caption")).to_contain_text("for your next question")
        eventually(lambda: free(server))
        count = len(steps)
        assert count < 300
        page.fill("#tokens", "3")
        ask(page, "And now?")
        assert len(steps) <= count + 3
        page.fill("#tokens", "1500")
        page.fill("#question", "Another?")
        page.keyboard.press("Enter")
        expect(page.locator("#stop")).to_be_visible()
        page.click("#new")
        expect(page.locator("#log > li")).to_have_count(0)
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator("#question")).to_have_value("")


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_the_servers_sentence_is_shown(opened: Open, tiny_bundle: Path) -> None:
    opened.expected.append("status of 413")  # type: ignore[attr-defined]
    opened.expected.append("status of 400")  # type: ignore[attr-defined]
    with serving(tiny_bundle, max_body=1 << 14) as small:
        page = opened(small)
        choose(page, picture(1, 256))
        page.fill("#question", "What?")
        page.click("#send")
        expect(page.locator("#log .wrong")).to_contain_text(re.compile(r"bytes|larger|too large"))
        expect(page.locator("#question")).to_have_value("What?")
        page.click("#new")
        page.click("#more summary")
        page.fill("#schema", '{"type": "nonsense"}')
        page.fill("#question", "What?")
        page.click("#send")
        expect(page.locator("#log .wrong")).to_contain_text("schema")
        page.fill("#schema", "{")
        page.click("#send")
        expect(page.locator("#log .wrong").last).to_contain_text("The schema under More is no JSON")
        page.fill("#tokens", "0")
        page.click("#send")
        expect(page.locator("#log .wrong").last).to_contain_text("correct it under More")


def test_a_server_that_is_gone_and_one_that_breaks_off(opened: Open, server: Running) -> None:
    opened.expected += ["ERR_FAILED", "net::"]  # type: ignore[attr-defined]
    page = opened(server)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#question", "What?")
    page.click("#send")
    expect(page.locator("#log .wrong")).to_contain_text("cannot be reached")
    page.unroute("**/v1/chat/completions")
    half = 'data: {"choices": [{"delta": {"content": "ha"}, "finish_reason": null}]}\n\n'
    error = 'data: {"error": {"message": "The server is being stopped."}}\n\ndata: [DONE]\n\n'
    for body, sentence in ((half, "broke off"), (half + error, "The server is being stopped.")):
        page.route("**/v1/chat/completions", partial(_stream, body))
        page.click("#send")
        expect(page.locator("#log .wrong").last).to_contain_text(sentence)
        page.unroute("**/v1/chat/completions")


def _stream(body: str, route: Any) -> None:
    route.fulfill(status=200, content_type="text/event-stream", body=body)


def test_a_key_is_asked_for_and_kept_in_the_tab(opened: Open, tiny_bundle: Path) -> None:
    opened.expected.append("status of 401")  # type: ignore[attr-defined]
    with serving(tiny_bundle, api_key="right-key") as locked:
        page = opened(locked, ready=False)
        expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "wrong-key")
        page.keyboard.press("Enter")
        expect(page.locator("#locked-why")).to_contain_text("not accepted")
        page.fill("#key", "right-key")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_contain_text("room for")
        expect(page.locator("#locked")).to_be_hidden()
        page.fill("#tokens", "2") if page.locator("#tokens").is_visible() else None
        ask(page, "What?")
        assert page.evaluate("Object.values(localStorage).length + document.cookie.length") == 0
        page.reload()
        expect(page.locator("#model")).to_contain_text("room for")
        page.evaluate("sessionStorage.setItem('edgevlm.key', 'old-key')")
        page.fill("#question", "Again?")
        page.keyboard.press("Enter")
        expect(page.locator("#locked")).to_be_visible()
        page.fill("#key", "right-key")
        page.keyboard.press("Enter")
        expect(page.locator("#log .stages")).to_have_count(1)
        expect(page.locator("#log .question")).to_contain_text("Again?")


HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;\u202e</p>"


def test_what_a_model_says_is_text(opened: Open, server: Running) -> None:
    page = opened(server)
    box = {"label": HOSTILE, "x0": 5, "y0": 5, "x1": 20, "y1": 20}
    stub(page, HOSTILE, boxes=[box], points=[])
    choose(page, picture(1))
    page.set_input_files("#files", [{"name": f"{HOSTILE[:40]}.png", "mimeType": "image/png", "buffer": picture(2)}])
    answer = ask(page, HOSTILE)
    assert answer.locator(".answer").text_content() == HOSTILE
    assert page.locator("#log script, #log img[src='x'], #marks script").count() == 0
    assert page.title() == "EdgeVLM"


# --- where something is ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_boxes_lie_where_they_are(size: tuple[int, int], opened: Open, server: Running) -> None:
    """In pixels of the picture, at whatever size that is shown, also after the window changes."""
    page = opened(server, size)
    boxes = [
        {"label": "dog", "x0": 16, "y0": 32, "x1": 48, "y1": 60},
        {"label": "", "x0": 0, "y0": 0, "x1": 64, "y1": 64},
    ]
    stub(page, "<box>", boxes=boxes, points=[{"label": "nose", "x": 8, "y": 8}])
    choose(page, picture(1))
    answer = ask(page)

    def check() -> None:
        image = page.locator("#picture").bounding_box()
        scale = image["width"] / 64
        assert scale > 1 and image["height"] == pytest.approx(64 * scale, abs=1)
        for rect, box in zip(page.locator("#marks .place:not(.dot)").all(), boxes, strict=True):
            found = rect.bounding_box()
            for name, value in (("x", box["x0"]), ("y", box["y0"])):
                assert found[name] + found["width"] * 0 == pytest.approx(image[name] + value * scale, abs=2.5)  # type: ignore[operator]
            assert found["width"] == pytest.approx((box["x1"] - box["x0"]) * scale, abs=5)  # type: ignore[operator]
        point = page.locator("#marks .dot").bounding_box()
        assert point["x"] + point["width"] / 2 == pytest.approx(image["x"] + 8 * scale, abs=2)
        high = [text.bounding_box()["height"] for text in page.locator("#marks .name").all()]
        assert len(high) == 2 and all(10 < each < 24 for each in high), "labels keep their size on the screen"

    check()
    page.set_viewport_size({"width": size[0] - 60, "height": size[1] - 120})
    page.wait_for_timeout(200)
    check()
    assert page.locator("#marks .name").all_text_contents() == ["dog", "nose"]
    items = answer.locator(".places li").all_text_contents()
    assert items == ["dog at 16, 32, 48, 60", "box at 0, 0, 64, 64", "nose at 8, 8"]
    page.unroute("**/v1/chat/completions")
    stub(page, "none", boxes=[], points=[])
    ask(page, "What else?", 2)
    expect(page.locator("#marks rect")).to_have_count(0)
    page.click("text=Show on the picture")
    expect(page.locator("#marks .place:not(.dot)")).to_have_count(2)


def test_a_turned_photo_is_drawn_as_it_is_shown(opened: Open, server: Running) -> None:
    """Of a photo with a rotation in its EXIF, boxes are in pixels of the upright picture, as the server sees it."""
    page = opened(server)
    photo = Path(__file__).parents[1] / "vectors" / "images" / "exif_6.jpg"
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(Image.open(photo)).size
    stub(page, "<box>", boxes=[], points=[{"label": "", "x": 1, "y": 1}])
    choose(page, photo.read_bytes())
    ask(page)
    assert page.get_attribute("#marks", "viewBox") == f"0 0 {upright[0]} {upright[1]}"


# --- everybody's page --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, WIDE, (320, 568)])
def test_nothing_is_cut_off(size: tuple[int, int], scheme: str, opened: Open, server: Running) -> None:
    page = opened(server, size, scheme)
    wide = "() => document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(wide) <= 0
    stub(
        page, "wordwithoutanyspaces" * 30, boxes=[{"label": "x" * 60, "x0": 60, "y0": 0, "x1": 64, "y1": 9}], points=[]
    )
    choose(page, picture(1), picture(2), picture(3))
    ask(page, "q" * 300)
    page.click("#more summary")
    page.fill("#schema", "{" * 200)
    page.set_input_files("#files", [{"name": "n" * 200 + ".txt", "mimeType": "text/plain", "buffer": b"x"}])
    expect(page.locator("#trouble")).to_be_visible()
    assert page.evaluate(wide) <= 0
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) > 384
    assert light == (scheme == "light")
    for button in page.locator("button:visible, summary:visible").all():
        box = button.bounding_box()
        assert box["height"] >= 40 and box["width"] >= 40, button.inner_text()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0] + 1, button.inner_text()


def test_by_keyboard_and_to_a_screen_reader(opened: Open, server: Running) -> None:
    page = opened(server)
    bodies = stub(page, "fine")
    page.focus("#question")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert not bodies and page.input_value("#question") == "one\ntwo"
    page.keyboard.press("Enter")
    expect(page.locator("#log .answer")).to_have_text("fine")
    assert bodies[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    assert len(bodies) == 1, "an empty question is none"
    nameless = """() => [...document.querySelectorAll("button, input:not([hidden]), textarea, img, video")]
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.hasAttribute("alt")))
        .map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.get_attribute("#log", "role") == "log" and page.get_attribute("#log", "aria-live") == "polite"
    assert page.locator("#log [aria-busy]").count() == 0
    outline = """() => document.activeElement === document.body ? "none here"
        : getComputedStyle(document.activeElement).outlineStyle"""
    outlines = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        outlines.add(page.evaluate(outline))
    assert outlines <= {"none here", "solid"}, "where the focus is can be seen"


def test_fields_go_into_the_request(opened: Open, server: Running) -> None:
    page = opened(server)
    bodies = stub(page, '{"a": 1}')
    page.click("#more summary")
    page.fill("#tokens", "7")
    page.fill("#temperature", "0.5")
    page.fill("#schema", '{"type": "object"}')
    ask(page, "What?")
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert bodies[0]["max_tokens"] == 7 and bodies[0]["temperature"] == 0.5 and bodies[0]["response_format"] == form
    assert bodies[0]["stream"] is True and bodies[0]["model"] == server.server.service.name
    page.unroute("**/v1/chat/completions")
    page.fill("#schema", '{"type": "boolean"}')
    page.click("#new")
    answer = ask(page, "Yes?").locator(".answer").text_content()
    assert answer in ("true", "false")


def test_a_page_while_the_model_is_being_loaded(opened: Open, server: Running) -> None:
    opened.expected.append("status of 503")  # type: ignore[attr-defined]
    page = opened(server, ready=False)
    body = json.dumps({"error": {"message": "The model is being loaded: ask again soon."}})
    page.route("**/health", lambda route: route.fulfill(status=503, content_type="application/json", body=body))
    page.reload()
    expect(page.locator("#model")).to_contain_text("is being loaded")
    page.unroute("**/health")
    expect(page.locator("#model")).to_contain_text("room for", timeout=10_000)
