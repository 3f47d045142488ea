"""The web page for everybody: by keyboard, by screen reader, on a phone, in light and dark."""

from chromium import tab
from page_call import calling, in_a_call, quiet, said, state, talk_on
from scripted_server import ScriptedServer, served

CONTRAST = """
const channels = (colour) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data);
};
const luminance = (rgb) => {
    const [r, g, b] = rgb.map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
    for (; node; node = node.parentElement) {
        const colour = channels(getComputedStyle(node).backgroundColor);
        if (colour[3] === 255) return colour.slice(0, 3);
    }
    throw new Error("no ground");
};
const faint = [];
for (const node of document.querySelectorAll("body *")) {
    const own = Array.from(node.childNodes).some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest(":disabled")) continue;
    const text = channels(getComputedStyle(node).color).slice(0, 3);
    const [light, dark] = [luminance(text), luminance(ground(node))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) faint.push([node.id || node.className || node.tagName, ratio]);
}
return faint;
"""
OVERFLOW = """
const width = document.documentElement.clientWidth;
const wide = Array.from(document.querySelectorAll("body *")).filter((node) =>
    node.checkVisibility() && !node.closest(".unseen") && node.getBoundingClientRect().right > width + 0.5);
return [document.documentElement.scrollWidth - width, wide.map((node) => node.id || node.className)];
"""
WORDS = "A" + "a" * 80 + " and the rest of it, as long as a reply may be when the agent likes to talk."


@in_a_call(quiet(60_000))
async def test_typing_stopping_and_hanging_up_by_keyboard_alone(address):
    async with calling(address, talk_on) as (page, _, told):
        focus = "document.activeElement.id"
        shows = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        order = []
        for _ in range(3):
            await page.key("Tab")
            order.append(await page.run(focus))
            assert await page.run(shows), f"{order[-1]} does not show that it has the focus"
        assert order == ["conversation", "call", "push"]
        await page.key("Tab", shift=True)
        await page.key("Enter")
        await page.until(state("listening"))
        while await page.run(focus) != "text":
            await page.key("Tab")
        await page.type("alpha")
        await page.key("Enter")
        await page.until(state("responding"))
        assert await page.run(said("user")) == ["alpha"]
        while await page.run(focus) != "stop":
            await page.key("Tab", shift=True)
        await page.key("Space")
        await page.until(f"{state('listening')} && document.querySelector('.unheard')")
        assert told.all("interrupted")[0]["source"] == "caller"
        while await page.run(focus) != "call":
            await page.key("Tab", shift=True)
        await page.key("Enter")
        await page.until(state("ready"))
        assert "The call has ended." in await page.text()
        assert page.complaints == []


@in_a_call(quiet(60_000))
async def test_the_newest_is_kept_in_view_unless_the_reader_scrolls_back(address):
    at_end = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight < 2)"
    at_end += "(document.querySelector('#conversation'))"
    far = ScriptedServer()
    async with served(far.app) as port, tab(address) as page:
        await page.look(360, 640)
        await page.go(f"http://127.0.0.1:{port}/?raw=1")
        await page.click("#call")
        call = await far.call()
        await call.welcome()
        turns = [{"type": "transcript", "turn": n, "text": f"Turn {n}.", "final": True, "confidence": None} for n in range(41)]
        await call.say(*turns[:40])
        await page.until(f"{said('user')}.length === 40 && {at_end}")
        await page.look(360, 560)
        await page.until(at_end)
        await page.run("document.querySelector('#conversation').scrollTop = 100; return 1")
        await page.run("new Promise(requestAnimationFrame)")
        await call.say(turns[40])
        await page.until(f"{said('user')}.length === 41")
        assert await page.run("document.querySelector('#conversation').scrollTop") == 100


@in_a_call(quiet(100))
async def test_every_state_fits_a_phone_and_can_be_read_in_light_and_dark(address):
    async def boast(text, history):
        return WORDS * 3

    async def check(page, name):
        for dark in (False, True):
            for width, height in ((360, 640), (1100, 800)):
                await page.look(width, height, dark=dark)
                assert await page.run(OVERFLOW) == [0, []], f"{name} is too wide at {width} px"
                low = await page.run("document.querySelector('footer').getBoundingClientRect().bottom - innerHeight")
                assert low <= 0, f"{name}: the controls are not all to be seen at {width} x {height}"
                assert await page.run(CONTRAST) == [], f"{name} is faint, {'dark' if dark else 'light'}"
        await page.look(360, 640)

    async with calling(address, boast) as (page, line, _):
        await check(page, "ready")
        await page.click("#call")
        await page.until(state("listening"))
        await check(page, "listening")
        await page.run(f"document.querySelector('#text').value = {WORDS!r}; document.querySelector('#send').click(); return 1")
        await page.until(f"{state('responding')} && {said('agent')}[0].length > 300")
        await check(page, "responding")
        await page.click("#stop")
        await page.until("document.querySelector('.latency') && document.querySelector('.unheard')")
        await check(page, "cut off")
        line.refuse()
        line.cut()
        await page.until("document.querySelector('#banner.lost')")
        await check(page, "reconnecting")
        await page.click("#call")
        await page.until(state("ready"))
        await page.run("document.querySelector('#key-form').hidden = false; return 1")
        await check(page, "asking for a key")


async def names(page):
    """What a screen reader calls the controls, by kind."""
    found = {}
    for node in (await page.command("Accessibility.getFullAXTree"))["nodes"]:
        if not node["ignored"]:
            found.setdefault(node.get("role", {}).get("value"), set()).add(node.get("name", {}).get("value"))
    return found


@in_a_call(quiet(60_000))
async def test_every_control_has_a_name_and_changes_are_announced(address):
    async with calling(address) as (page, _, _):
        everywhere = {"Stop reply", "Send", "Cut the line"}
        assert (await names(page))["button"] == everywhere | {"Mute", "Start"}
        await page.click("#push")
        await page.click("#call")
        await page.until(state("listening"))
        await page.run("document.querySelector('#key-form').hidden = false; return 1")
        named = await names(page)
        assert named["button"] == everywhere | {"Use key", "Hang up", "Hold to talk"}
        assert named["textbox"] == {"Access key", "Type instead of speaking"}
        assert named["switch"] == {"Push to talk"}
        assert named["region"] == {"Conversation"}
        await page.click("#text")
        await page.type("hello")
        await page.key("Enter")
        await page.until("document.querySelector('#spoken').textContent === 'Agent: You said hello.'")
        live = "Array.from(document.querySelectorAll('[aria-live=polite], [role=status], [role=alert]'), (node) => node.id)"
        assert await page.run(live) == ["state", "banner", "spoken", "problem"]
