#!/usr/bin/env python3
"""Looks at a coordinator's page with Chromium, for tests/e2e/pages.c: page_check.py PORT DIR.

Exit status 77 without Chromium. FEDLORA_PAGE_SHOTS names a folder in which the screenshots are kept.
"""
import os
import re
import shutil
import subprocess
import sys
import urllib.request

WIDTHS = (360, 1280)
MEASURE = "<script>document.title=document.documentElement.scrollWidth+' of '+window.innerWidth</script>"


def chromium(folder, *arguments):
    """(standard output, standard error)"""
    command = [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-dev-shm-usage", "--user-data-dir=" + os.path.join(folder, "profile"),
               "--enable-logging=stderr", "--timeout=3000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True,
                          env={**os.environ, "HOME": folder})
    return done.stdout, done.stderr


def expect(condition, what):
    if not condition:
        sys.exit("page_check: " + what)


def check_text(html):
    for word in ("<h1>test</h1>", "Ready", "triage", "round 9 of 30", "Waits for", "<progress", "<svg", "m2", "connected",
                 "round.closed", "Finished runs (1)", "flora"):
        expect(word in html, f"the page has no {word}")
    expect(re.search(r"<code>[0-9a-f]{64}</code>", html), "the finished run has no digest")


def check_width(folder, page):
    """A copy with a script that measures itself: nothing may stand beyond the right edge."""
    path = os.path.join(folder, "copy.html")
    with open(path, "w", encoding="utf-8") as file:
        file.write(page.replace("</body>", MEASURE + "</body>"))
    for width in WIDTHS:
        dom, _ = chromium(folder, f"--window-size={width},2000", "--dump-dom", "file://" + path)
        found = re.search(r"<title>(\d+) of (\d+)</title>", dom)
        expect(found, f"{width} pixels: the copy was not measured")
        expect(int(found.group(1)) <= int(found.group(2)), f"{width} pixels: {found.group(0)}")


def main():
    port, folder = sys.argv[1:3]
    url = f"http://127.0.0.1:{port}/"
    if not shutil.which("chromium"):
        return 77
    with urllib.request.urlopen(url, timeout=10) as reply:
        page = reply.read().decode()
    expect(len(page) < 50000, f"the page has {len(page)} bytes")
    expect("<script" not in page, "the page has a script")
    dom, said = chromium(folder, "--dump-dom", url)
    check_text(dom)
    expect("CONSOLE" not in said, said)
    check_width(folder, page)
    shots = os.environ.get("FEDLORA_PAGE_SHOTS")
    for width in WIDTHS if shots else ():
        for scheme in ("", "--blink-settings=preferredColorScheme=0"):
            name = os.path.join(shots, f"page{width}{'dark' if scheme else ''}.png")
            chromium(folder, f"--window-size={width},1800", "--screenshot=" + name, *[s for s in [scheme] if s], url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
