(() => {
  const form = document.getElementById("ask");
  const field = (id) => document.getElementById(id);
  const stop = field("stop");
  const novelties = [];
  let running = null;

  const shown = (x) => (x === 0 ? "0" : x.toPrecision(3)).replace("-", "−");
  const percent = (logProb) => `${shown(100 * Math.exp(logProb))} %`;

  // From the 5th to the 95th percentile of what there is so far, so that an outlier does not flatten all others.
  let scale = { low: 0, high: 1 };
  const share = (novelty) => {
    const width = scale.high - scale.low;
    return width > 0 ? Math.min(1, Math.max(0, (novelty - scale.low) / width)).toFixed(2) : "0";
  };
  let isStale = false;
  const tintAll = () => {
    isStale = false;
    if (!novelties.length) return;
    const sorted = Float64Array.from(novelties).sort();
    const at = (part) => sorted[Math.round(part * (sorted.length - 1))];
    scale = { low: at(0.05), high: at(0.95) };
    field("low").textContent = shown(scale.low);
    field("high").textContent = shown(scale.high);
    for (const token of document.querySelectorAll(".t[data-novelty]")) {
      token.style.setProperty("--n", share(Number(token.dataset.novelty)));
    }
  };

  const element = (token, place) => {
    const span = document.createElement("span");
    const word = document.createElement("b");
    const start = token.text.length - token.text.trimStart().length;
    const spaces = token.text.slice(0, start).match(/^ *(?=\S)/)?.[0] ?? "";
    word.textContent = token.text.slice(spaces.length);
    span.append(spaces, word);
    span.className = "t" + (token.text === "" ? " none" : token.text.startsWith("\n") ? " line" : "");
    span.tabIndex = place === 0 ? 0 : -1;
    const lines = [
      `token\t${JSON.stringify(token.text).replaceAll("\t", " ")}, token ${place + 1} of the completion`,
      `probability\t${percent(token.log_prob)}`,
    ];
    if (token.novelty !== null) {
      lines.push(`novelty\t${shown(token.novelty)} of the deep state`);
      span.dataset.novelty = token.novelty;
      novelties.push(token.novelty);
      if (!isStale) {
        isStale = true;
        requestAnimationFrame(tintAll);
      }
    }
    span.dataset.tip = lines.join("\n");
    return span;
  };

  const columns = (arm, count) => {
    const place = arm.querySelector(".columns");
    place.replaceChildren();
    return Array.from({ length: count }, (_, at) => {
      const article = document.createElement("article");
      const title = document.createElement("h3");
      const facts = document.createElement("small");
      const text = Object.assign(document.createElement("p"), { className: "text", dir: "auto" });
      title.append(`${at + 1} `, facts);
      article.append(title, text);
      place.append(article);
      return { text, facts, tokens: 0 };
    });
  };

  // The data of server-sent events, one at a time.
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice("data: ".length);
      }
    }
  }

  const run = async (arm, body, signal) => {
    const note = arm.querySelector("h2 small");
    const shownColumns = columns(arm, body.n);
    const started = performance.now();
    let count = 0;
    note.className = "";
    note.textContent = "…";
    try {
      const headers = { "Content-Type": "application/json" };
      if (field("key")) headers.Authorization = `Bearer ${field("key").value}`;
      const response = await fetch(form.dataset.path, { method: "POST", headers, body: JSON.stringify(body), signal });
      if (!response.ok) throw new Error((await response.json()).error.message);
      for await (const data of events(response)) {
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        for (const choice of chunk.choices) {
          const column = shownColumns[choice.index];
          for (const token of choice.esamp?.tokens ?? []) {
            column.text.append(element(token, column.tokens));
            column.tokens += 1;
            count += 1;
          }
          // Text that was held back until the end has no token of its own.
          const said = choice.text ?? choice.delta?.content ?? "";
          if (said && !choice.esamp?.tokens.length) column.text.append(said);
          if (choice.finish_reason) {
            column.facts.textContent = `${column.tokens} tokens; ${choice.finish_reason}`;
          }
        }
        const seconds = (performance.now() - started) / 1000;
        note.textContent = `β ${body.esamp.beta}, seed ${chunk.esamp.seed}, ${(count / seconds).toFixed(1)} tokens/s`;
      }
    } catch (error) {
      note.className = "failed";
      note.textContent = error.name === "AbortError" ? "stopped" : error.message;
    }
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    const own = new AbortController();
    running = own;
    stop.disabled = false;
    novelties.length = 0;
    const prompt = field("prompt").value;
    const seed = field("seed").value || Math.floor(Math.random() * 2 ** 32);
    const isChat = form.dataset.path.includes("chat");
    const body = (beta) => ({
      model: form.dataset.model,
      ...(isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      n: Number(field("n").value),
      max_tokens: Number(field("tokens").value),
      temperature: Number(field("temperature").value),
      seed: Number(seed),
      stream: true,
      esamp: { beta, details: true },
    });
    await Promise.all([
      run(field("plain"), body(0), own.signal),
      run(field("esamp"), body(Number(field("beta").value)), own.signal),
    ]);
    if (running === own) stop.disabled = true;
  });
  stop.addEventListener("click", () => running?.abort());
})();
