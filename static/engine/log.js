// The live log of one job: events come over a WebSocket, in order and without gaps, and only the lines in sight are
// in the page. Everything is put in as text; what would not show, or would reorder text, is made visible.
(() => {
  "use strict";

  const LEVELS = { debug: 0, info: 1, warning: 2, error: 3 };
  const LINE_HEIGHT = 20; // as .e-log-line in dashboard.css
  const SPARE_LINES = 30; // drawn above and below what is in sight
  const LONGEST_LINE = 20000; // characters drawn of one line; the download has all
  const TALLEST = 10e6; // pixels: browsers draw nothing beyond some 17 million; a longer log scrolls in proportion
  const SLICE = 20000; // events looked at between two frames when a filter changes
  const TYPING_MS = 150;
  const MOST_COPIED = 20e6; // characters
  const FIRST_RETRY_MS = 500;
  const LAST_RETRY_MS = 15000;
  const CLOSE = { ended: 4000, badAfter: 4400, notAuthenticated: 4401, forbidden: 4403, notFound: 4404 };
  const REFUSALS = new Map([
    [CLOSE.badAfter, "The log cannot be read from here: reload the page"],
    [CLOSE.notAuthenticated, "You are signed out: reload the page"],
    [CLOSE.forbidden, "Your account may not read this log"],
    [CLOSE.notFound, "This job is gone"],
  ]);
  // The same list as in engine/dashboard/text.py.
  const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

  const CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
  ).split(" ");

  // --- the events, by cursor ---

  // Delivers each event once and in order, whatever happens to the connection.
  class Feed {
    constructor(path, { deliver, say, opened, ended }) {
      this.path = path;
      this.deliver = deliver;
      this.say = say;
      this.opened = opened;
      this.ended = ended;
      this.last = 0; // seq of the newest event delivered: the cursor
      this.tries = 0;
      this.isOver = false;
      window.addEventListener("online", () => this.hurry());
      window.addEventListener("offline", () => this.socket?.close());
      document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
      this.connect();
    }

    connect() {
      clearTimeout(this.timer);
      this.timer = 0;
      const address = new URL(this.path, window.location.href);
      address.protocol = address.protocol.replace("http", "ws");
      address.searchParams.set("after", this.last);
      const socket = new WebSocket(address);
      this.socket = socket;
      socket.addEventListener("open", () => {
        if (socket !== this.socket) return;
        this.say("Live", "good");
        this.opened();
      });
      socket.addEventListener("message", (message) => {
        if (socket === this.socket) this.take(JSON.parse(message.data));
      });
      socket.addEventListener("close", (event) => {
        if (socket === this.socket) this.closed(event.code);
      });
    }

    take(frame) {
      this.tries = 0;
      const fresh = [];
      for (const event of Array.isArray(frame) ? frame : [frame]) {
        if (event.seq <= this.last) continue; // seen before the connection was cut
        if (event.seq > this.last + 1 && this.last > 0) {
          // One is missing: ask again from where we are.
          this.socket.close();
          break;
        }
        this.last = event.seq;
        fresh.push(event);
      }
      if (fresh.length) this.deliver(fresh);
    }

    closed(code) {
      this.socket = null;
      if (this.isOver) return;
      if (code === CLOSE.ended) {
        this.isOver = true;
        this.say("Complete", "");
        this.ended();
      } else if (REFUSALS.has(code)) {
        this.isOver = true;
        this.say(REFUSALS.get(code), "bad");
      } else {
        const wait = Math.min(FIRST_RETRY_MS * 2 ** this.tries, LAST_RETRY_MS) * (0.5 + Math.random() / 2);
        this.tries += 1;
        this.say("Connection lost, trying again…", "wait");
        this.timer = setTimeout(() => this.connect(), wait);
      }
    }

    // The network is back, or somebody looks: do not wait for the next try.
    hurry() {
      if (this.timer && !this.isOver) this.connect();
    }
  }

  // --- the lines in sight ---

  class LogView {
    constructor(section) {
      const find = (name) => section.querySelector(`[data-log-${name}]`);
      this.section = section;
      this.box = find("box");
      this.sheet = find("lines");
      this.note = find("note");
      this.status = find("status");
      this.count = find("count");
      this.followButton = find("follow");
      this.wrapButton = find("wrap");
      this.events = [];
      this.lines = []; // what the filter lets through: {event, text, isFirst}
      this.level = 1;
      this.words = "";
      this.source = "";
      this.times = "clock";
      this.seen = 0; // events that the filters have been asked about
      this.isFollowing = true;
      this.columns = 0; // wrap at this many characters; 0: do not wrap
      this.longest = 0;

      find("level").addEventListener("change", (event) => {
        this.level = Number(event.target.value);
        this.rebuild();
      });
      find("search").addEventListener("input", (event) => {
        this.words = event.target.value.toLowerCase();
        clearTimeout(this.typing);
        this.typing = setTimeout(() => this.rebuild(), this.events.length > SLICE ? TYPING_MS : 0);
      });
      find("source").addEventListener("change", (event) => {
        this.source = event.target.value;
        this.rebuild();
      });
      find("times").addEventListener("change", (event) => {
        this.times = event.target.value;
        this.section.dataset.times = this.times;
        if (this.columns) this.wrap(true);
        else this.drawLines();
      });
      find("copy").addEventListener("click", (event) => this.copy(event.target));
      this.followButton.addEventListener("click", () => this.follow(!this.isFollowing));
      this.wrapButton.addEventListener("click", () => this.wrap(!this.columns));
      this.box.addEventListener("scroll", () => this.scrolled());
      this.box.addEventListener("keydown", (event) => this.pressed(event));
      new ResizeObserver(() => this.resized()).observe(this.box);
      if (this.box.clientWidth < 600) this.wrap(true);
      this.isEnded = section.dataset.final === "yes";

      this.feed = new Feed(section.dataset.log, {
        deliver: (events) => this.add(events),
        say: (text, mood) => this.say(text, mood),
        opened: () => setTimeout(() => this.tell(), 1500),
        ended: () => { this.isEnded = true; this.draw(); this.tellPage(); },
      });
    }

    // Thousands of events may come between two frames: they are drawn once.
    add(events) {
      for (const event of events) this.events.push(event);
      if (events.some((event) => event.type !== "log")) this.tellPage();
      this.later();
    }

    later() {
      if (this.isDue) return;
      this.isDue = true;
      // A hidden page gets no animation frames, and must not pile up work either.
      const run = () => { this.isDue = false; this.draw(); };
      document.hidden ? setTimeout(run, 250) : requestAnimationFrame(run);
    }

    // Something other than a log line happened: the rest of the page has changed too.
    tellPage() {
      clearTimeout(this.telling);
      this.telling = setTimeout(() => document.querySelector("[data-live]")?.engineLive?.refresh(), 150);
    }

    say(text, mood) {
      this.status.textContent = text;
      this.status.dataset.mood = mood;
    }

    passes(event) {
      if ((LEVELS[event.level] ?? 1) < this.level) return false;
      if (this.source && this.source !== sourceOf(event)) return false;
      return !this.words || textOf(event).toLowerCase().includes(this.words);
    }

    // The filters' answer for the events up to `end`.
    sift(end) {
      for (; this.seen < end; this.seen += 1) {
        const event = this.events[this.seen];
        if (!this.passes(event)) continue;
        let isFirst = true;
        for (const text of textOf(event).replace(/\n$/, "").split("\n")) {
          for (const piece of this.cut(text)) {
            this.lines.push({ event, text: piece, isFirst });
            if (piece.length > this.longest) this.longest = piece.length;
            isFirst = false;
          }
        }
      }
    }

    cut(text) {
      const whole = text.length > LONGEST_LINE ? `${text.slice(0, LONGEST_LINE)}… (${text.length} characters)` : text;
      if (!this.columns || whole.length <= this.columns) return [whole];
      const pieces = [];
      for (let from = 0; from < whole.length; from += this.columns) pieces.push(whole.slice(from, from + this.columns));
      return pieces;
    }

    rebuild() {
      this.lines = [];
      this.longest = 0;
      this.seen = 0;
      this.draw();
    }

    draw() {
      this.sift(Math.min(this.events.length, this.seen + SLICE));
      if (this.seen < this.events.length) this.later(); // the page stays alive between two slices
      const height = Math.min(this.lines.length * LINE_HEIGHT, TALLEST);
      this.sheet.style.height = `${height}px`;
      // As tall as its lines, up to what the stylesheet allows.
      this.box.style.height = `${height + LINE_HEIGHT}px`;
      this.sheet.style.width = this.columns ? "100%" : `max(100%, ${this.longest + 26}ch)`;
      if (this.isFollowing) {
        this.isOurScroll = true;
        this.box.scrollTop = height;
      }
      this.drawLines();
      this.tell();
    }

    // The line at the upper edge; within a line by its fraction.
    top() {
      const lines = this.lines.length - this.box.clientHeight / LINE_HEIGHT;
      const room = this.sheet.offsetHeight - this.box.clientHeight;
      const isScaled = this.lines.length * LINE_HEIGHT > TALLEST;
      return isScaled && room > 0 ? Math.max(0, lines) * Math.min(1, this.box.scrollTop / room) : this.box.scrollTop / LINE_HEIGHT;
    }

    drawLines() {
      const top = this.top();
      const above = this.box.scrollTop - top * LINE_HEIGHT; // 0 unless the log scrolls in proportion
      const first = Math.max(0, Math.floor(top) - SPARE_LINES);
      const last = Math.min(this.lines.length, Math.ceil(top + this.box.clientHeight / LINE_HEIGHT) + SPARE_LINES);
      const drawn = document.createDocumentFragment();
      for (let index = first; index < last; index += 1) drawn.append(this.line(this.lines[index], above + index * LINE_HEIGHT));
      this.sheet.replaceChildren(drawn);
    }

    line({ event, text, isFirst }, top) {
      const row = element("div", `e-log-line e-level-${LEVELS[event.level] === undefined ? "info" : event.level}`);
      if (event.type !== "log") row.classList.add("e-event");
      row.style.top = `${top}px`;
      const time = element("span", "e-log-time");
      const tag = element("span", "e-log-tag");
      if (isFirst) {
        const moment = new Date(event.at);
        time.textContent = this.timeOf(moment);
        time.title = `${window.Engine.times.absolute.format(moment)}, number ${event.seq}, attempt ${event.attempt}`;
        tag.textContent = sourceOf(event);
      }
      const body = element("span", "e-log-text");
      this.fill(body, text);
      row.append(time, tag, body);
      return row;
    }

    timeOf(moment) {
      if (this.times === "since") return sinceText(moment - new Date(this.events[0].at));
      return (this.times === "date" ? dateAndClock : clock).format(moment);
    }

    // What the filters show, as text: the clipboard takes what the page shows, hidden characters by their names.
    async copy(button) {
      const parts = [];
      let size = 0;
      for (const { event, text, isFirst } of this.lines) {
        const line = isFirst ? `${event.at} ${sourceOf(event)} ${named(text)}` : named(text);
        size += line.length;
        if (size > MOST_COPIED) break;
        parts.push(line);
      }
      try {
        await navigator.clipboard.writeText(parts.join("\n"));
        button.textContent = parts.length === this.lines.length ? "Copied" : `Copied ${parts.length.toLocaleString()} lines`;
      } catch {
        button.textContent = "No clipboard here: download it";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2500);
    }

    fill(body, text) {
      if (!this.words) {
        putVisible(body, text);
        return;
      }
      const low = text.toLowerCase();
      let from = 0;
      for (let at = low.indexOf(this.words); at >= 0; at = low.indexOf(this.words, from)) {
        putVisible(body, text.slice(from, at));
        const hit = element("mark");
        putVisible(hit, text.slice(at, at + this.words.length));
        body.append(hit);
        from = at + this.words.length;
      }
      putVisible(body, text.slice(from));
    }

    tell() {
      const shown = this.lines.length.toLocaleString();
      const all = this.events.length.toLocaleString();
      this.count.textContent = this.events.length ? `${shown} line${plural(this.lines)} of ${all} event${plural(this.events)}` : "";
      this.note.hidden = this.lines.length > 0;
      if (this.lines.length) return;
      if (this.events.length) this.note.textContent = "No line passes the filter.";
      else if (this.seen < this.events.length) this.note.textContent = "Looking…";
      else if (this.isEnded) this.note.textContent = "The log of this job is no longer kept.";
      else this.note.textContent = "Nothing yet. Lines show here as the job writes them.";
    }

    // --- moving about ---

    scrolled() {
      if (this.isOurScroll) {
        this.isOurScroll = false;
      } else {
        const isAtEnd = this.box.scrollTop + this.box.clientHeight >= this.sheet.offsetHeight - LINE_HEIGHT;
        if (isAtEnd !== this.isFollowing) this.follow(isAtEnd, { jump: false });
      }
      this.drawLines();
    }

    follow(isFollowing, { jump = true } = {}) {
      this.isFollowing = isFollowing;
      this.followButton.setAttribute("aria-pressed", String(isFollowing));
      if (isFollowing && jump) this.draw();
    }

    wrap(isWrapping) {
      this.columns = isWrapping ? this.widthInCharacters() : 0;
      this.wrapButton.setAttribute("aria-pressed", String(isWrapping));
      this.rebuild();
    }

    widthInCharacters() {
      const probe = element("span", "e-log-text");
      probe.textContent = "0".repeat(100);
      const row = element("div", "e-log-line");
      const time = element("span", "e-log-time");
      const tag = element("span", "e-log-tag");
      row.append(time, tag, probe);
      this.sheet.append(row);
      const character = probe.getBoundingClientRect().width / 100;
      const padding = 44; // the line's own, and the scroll bar
      const free = this.box.clientWidth - time.offsetWidth - tag.offsetWidth - padding;
      row.remove();
      return Math.max(20, Math.floor(free / (character || 8)));
    }

    resized() {
      if (this.columns) {
        const columns = this.widthInCharacters();
        if (columns !== this.columns) {
          this.columns = columns;
          this.rebuild();
          return;
        }
      }
      this.drawLines();
    }

    pressed(event) {
      const page = this.box.clientHeight - LINE_HEIGHT;
      const moves = {
        ArrowUp: -LINE_HEIGHT, ArrowDown: LINE_HEIGHT, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
      };
      const move = moves[event.key];
      if (move === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const scale = Math.min(1, this.sheet.offsetHeight / (this.lines.length * LINE_HEIGHT || 1));
      this.box.scrollTop = Math.min(this.sheet.offsetHeight, Math.max(0, this.box.scrollTop + move * scale));
    }
  }

  // --- events as text ---

  const clock = new Intl.DateTimeFormat("en-GB", {
    hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3,
  });

  const dateAndClock = new Intl.DateTimeFormat("sv-SE", {
    year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  });

  // "+1:02:03.456" from the first event on.
  function sinceText(milliseconds) {
    const whole = Math.max(0, milliseconds);
    const pad = (number, width) => String(Math.floor(number)).padStart(width, "0");
    const hours = Math.floor(whole / 3600000);
    const minutes = pad((whole / 60000) % 60, hours ? 2 : 1);
    return `+${hours ? `${hours}:` : ""}${minutes}:${pad((whole / 1000) % 60, 2)}.${pad(whole % 1000, 3)}`;
  }

  function sourceOf(event) {
    return event.type === "log" ? event.source : "engine";
  }

  // What the log says of an event that is not a line of the agent.
  const WORDS = {
    "job.queued": (data) => data.reason ? `Queued (${words(data.reason)})` : "Queued",
    "job.scheduled": (data) => data.reason ? `Scheduled (${words(data.reason)})` : "Scheduled",
    "job.started": (_, event) => `Attempt ${event.attempt} started`,
    "job.progress": (data) => typeof data.fraction === "number" ? `Progress ${Math.round(data.fraction * 100)} %` : "Progress",
    "job.retrying": () => "Will be tried again",
    "job.waiting": (data) => data.reason ? `Waiting (${words(data.reason)})` : "Waiting",
    "job.completed": () => "Completed",
    "job.failed": () => "Failed",
    "job.cancelled": (data) => data.by ? `Cancelled by ${data.by}` : "Cancelled",
    "job.rejected": (data) => `Rejected${data.reason ? ` (${words(data.reason)})` : ""}`,
    "step.started": () => "Step",
    "step.completed": () => "Step done",
    "question.opened": () => "Question",
    "question.answered": (data) => `Answered by ${data.by} (${JSON.stringify(data.answer)})`,
    "question.expired": () => "Nobody answered in time",
    "artifact.created": () => "Artifact",
  };

  function plural(list) {
    return list.length === 1 ? "" : "s";
  }

  function words(code) {
    return String(code).replaceAll("_", " ");
  }

  function textOf(event) {
    if (event.type === "log") return event.message || "";
    const say = WORDS[event.type];
    const title = say ? say(event.data || {}, event) : event.type;
    return event.message ? `${title}: ${event.message}` : title;
  }

  function element(name, className = "") {
    const made = document.createElement(name);
    if (className) made.className = className;
    return made;
  }

  function putVisible(parent, text) {
    let from = 0;
    for (const found of text.matchAll(HIDDEN)) {
      parent.append(text.slice(from, found.index), mark(found[0]));
      from = found.index + found[0].length;
    }
    if (from < text.length) parent.append(text.slice(from));
  }

  function mark(character) {
    const made = element("span", "e-hidden-char");
    made.title = codePoint(character);
    made.textContent = sign(character);
    return made;
  }

  function codePoint(character) {
    return `U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  }

  function sign(character) {
    const code = character.charCodeAt(0);
    return CONTROLS[code] || (code === 0x7f ? "DEL" : codePoint(character));
  }

  function named(text) {
    return text.replace(HIDDEN, (character) => `‹${sign(character)}›`);
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-log]").forEach((section) => { section.engineLog = new LogView(section); });
  });
})();
