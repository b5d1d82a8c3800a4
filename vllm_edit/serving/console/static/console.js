// The console's own script: the playground, and errors that are not HTML. Everything else works without it.
"use strict";

(() => {
  document.documentElement.classList.add("scripted"); // without scripts nothing renews itself

  const REFUSED = "The server did not answer. Look at the page again before you repeat this.";

  /** The message of an error in OpenAI's format; the text itself if it has another form. */
  function messageOf(text) {
    try {
      return JSON.parse(text).error.message;
    } catch {
      return text || REFUSED;
    }
  }

  function problem(message) {
    const shown = document.createElement("p");
    shown.className = "problem";
    shown.setAttribute("role", "alert");
    shown.textContent = message;
    return shown;
  }

  // htmx would read any answer as HTML. An error of the server's router is JSON.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const type = event.detail.xhr.getResponseHeader("Content-Type") || "";
    if (event.detail.xhr.status >= 400 && !type.startsWith("text/html")) {
      event.detail.shouldSwap = false;
      if (event.detail.target.classList.contains("outcome")) {
        event.detail.target.replaceChildren(problem(messageOf(event.detail.xhr.responseText)));
      }
    }
  });
  document.addEventListener("htmx:sendError", (event) => {
    const outcome = event.detail.elt.querySelector(".outcome");
    if (outcome) outcome.replaceChildren(problem(REFUSED));
  });

  /** An answer without the white space around it, and with one empty line for several. */
  function shownText(text) {
    return text.trim().replace(/\n\s*\n/gu, "\n\n");
  }

  const segmenter = new Intl.Segmenter(undefined, { granularity: "word" }); // finds words in Chinese and Thai too

  /** The words, marks and white space of a text, in order. */
  function wordsOf(text) {
    return Array.from(segmenter.segment(text), (part) => part.segment);
  }

  const isSpace = (word) => word.trim() === "";

  /** For each word, whether a longest common subsequence with the other text lacks it. */
  function changed(own, other) {
    const length = Array.from({ length: own.length + 1 }, () => new Uint16Array(other.length + 1));
    for (let i = own.length - 1; i >= 0; i--) {
      for (let j = other.length - 1; j >= 0; j--) {
        length[i][j] = own[i] === other[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
      }
    }
    const marks = own.map(() => true);
    for (let i = 0, j = 0; i < own.length && j < other.length; ) {
      if (own[i] === other[j]) {
        marks[i++] = false;
        j++;
      } else if (length[i + 1][j] >= length[i][j + 1]) {
        i++;
      } else {
        j++;
      }
    }
    return marks;
  }

  /** Show the text with the words marked that differ from base's; neighbours get one mark. */
  function mark(place, text, base) {
    const words = wordsOf(text);
    const solid = words.filter((word) => !isSpace(word));
    const marks = changed(solid, wordsOf(base).filter((word) => !isSpace(word)));
    place.replaceChildren();
    let index = 0;
    let open = null; // the mark that the next changed word continues
    let space = "";
    for (const word of words) {
      if (isSpace(word)) {
        space += word;
        continue;
      }
      if (!marks[index++]) {
        place.append(space + word);
        open = null;
      } else if (open && !space.includes("\n")) {
        open.textContent += space + word;
      } else {
        open = document.createElement("mark");
        open.textContent = word;
        place.append(space, open);
      }
      space = "";
    }
  }

  /** Call `each` with every event of a stream of server-sent events. */
  async function eventsOf(response, each) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ") && line !== "data: [DONE]") each(JSON.parse(line.slice(6)));
      }
    }
  }

  /** Ask one mode; returns the whole answer, or null after an error, which is shown. */
  async function ask(form, section, controller) {
    const text = section.querySelector("[data-part=text]");
    const about = section.querySelector("[data-part=about]");
    const fields = new URLSearchParams(new FormData(form));
    fields.set("mode", section.dataset.mode);
    section.classList.remove("failed");
    section.setAttribute("aria-busy", "true");
    text.replaceChildren();
    about.replaceChildren();
    const begun = performance.now();
    let said = "";
    let first = null;
    let usage = null;
    try {
      const asked = { method: "POST", body: fields, signal: controller.signal, headers: { "HX-Request": "true" } };
      const response = await fetch(form.action, asked);
      const home = response.headers.get("HX-Redirect");
      if (home) window.location.assign(home);
      if (!response.ok) {
        const body = await response.text();
        const page = new DOMParser().parseFromString(body, "text/html").querySelector(".problem");
        throw new Error(page ? page.textContent : messageOf(body));
      }
      await eventsOf(response, (event) => {
        if (event.error) throw new Error(event.error.message || REFUSED);
        usage = event.usage || usage;
        const choice = event.choices && event.choices[0];
        const piece = choice ? (choice.delta ? choice.delta.content : choice.text) : "";
        if (!piece) return;
        first ??= performance.now() - begun;
        said += piece;
        text.textContent = shownText(said);
      });
      const id = response.headers.get("X-VLLM-Edit-Answer");
      const whole = performance.now() - begun;
      const times = first === null ? "" : `first word ${Math.round(first)} ms, `;
      const tokens = usage ? `, ${usage.prompt_tokens} + ${usage.completion_tokens} tokens` : "";
      about.textContent = `${times}whole ${Math.round(whole)} ms${tokens} `;
      if (id) {
        const link = document.createElement("a");
        link.href = `${form.dataset.answers}/${encodeURIComponent(id)}`;
        link.textContent = "how it was answered";
        about.append(link);
      }
      return shownText(said);
    } catch (error) {
      if (error.name !== "AbortError") {
        section.classList.add("failed");
        text.textContent = error.message || REFUSED;
      }
      return null;
    } finally {
      section.removeAttribute("aria-busy");
    }
  }

  const form = document.getElementById("playground");
  if (form) {
    let running = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (running) running.abort();
      const controller = new AbortController();
      running = controller;
      const place = document.getElementById("answers");
      const sections = [...place.querySelectorAll("[data-mode]")];
      const answers = await Promise.all(sections.map((section) => ask(form, section, controller)));
      if (running !== controller) return;
      const [base, ...others] = answers;
      others.forEach((said, index) => {
        if (base !== null && said !== null) mark(sections[index + 1].querySelector("[data-part=text]"), said, base);
      });
      place.dataset.done = String(Number(place.dataset.done || 0) + 1); // the number of finished questions
    });
  }
})();
