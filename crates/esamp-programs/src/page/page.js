(() => {
  const tip = document.getElementById("tip");
  let shown = null;

  const hide = () => {
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };

  const show = (token) => {
    if (token === shown) return;
    hide();
    shown = token;
    token.setAttribute("aria-describedby", "tip");
    const list = document.createElement("dl");
    for (const line of token.dataset.tip.split("\n")) {
      const [name, value] = line.split("\t");
      list.append(Object.assign(document.createElement("dt"), { textContent: name }));
      list.append(Object.assign(document.createElement("dd"), { textContent: value }));
    }
    tip.replaceChildren(list);
    tip.hidden = false;
    // Below the token, or above it if there is no room; always inside the window.
    const word = token.querySelector("b");
    const box = word.getClientRects()[0] ?? word.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left = Math.max(8, Math.min(box.left, innerWidth - width - 8));
    const below = box.bottom + 8;
    const top = below + height > innerHeight && box.top > height + 16 ? box.top - height - 8 : below;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  };

  const tokenOf = (event) => (event.target instanceof Element ? event.target.closest(".t") : null);
  document.addEventListener("pointerover", (event) => {
    const token = tokenOf(event) ?? (document.activeElement?.matches(".t") ? document.activeElement : null);
    token ? show(token) : hide();
  });
  document.addEventListener("focusin", (event) => {
    const token = tokenOf(event);
    if (!token) return hide();
    token.closest(".text").querySelectorAll(".t[tabindex='0']").forEach((other) => (other.tabIndex = -1));
    token.tabIndex = 0;
    show(token);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    if (event.key === "Escape") return hide();
    if (!token) return;
    const tokens = token.parentElement.querySelectorAll(".t");
    const to = {
      ArrowRight: token.nextElementSibling,
      ArrowLeft: token.previousElementSibling,
      Home: tokens[0],
      End: tokens[tokens.length - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
  });

  // #2.3.14 links to a token: arm, completion and token, counted from 1.
  const follow = () => {
    const [arm, completion, place] = location.hash.slice(1).split(".").map((number) => Number(number) - 1);
    const text = document.querySelectorAll(".arm")[arm]?.querySelectorAll(".text")[completion];
    text?.querySelectorAll(".t")[place]?.focus();
  };
  addEventListener("hashchange", follow);
  follow();
})();
