// Searches as one types, by the very page that the form leads to: without this the
// form still does all.
"use strict";
{
	const input = document.getElementById("q");
	const count = document.getElementById("count");
	const results = document.getElementById("results");
	let timer, asked, shown = input.value.trim();

	const search = async () => {
		const text = input.value.trim();
		if (text === shown) return;
		asked?.abort();
		asked = new AbortController();
		const url = new URL(input.form.action);
		url.searchParams.set("q", text);
		try {
			const answer = await fetch(url, { signal: asked.signal });
			const page = new DOMParser().parseFromString(await answer.text(), "text/html");
			const found = page.getElementById("results");
			if (!found) return;
			results.replaceChildren(...found.childNodes);
			count.textContent = page.getElementById("count").textContent;
			shown = text;
			document.title = page.title;
			history.replaceState(null, "", url);
		} catch (err) {
			if (err.name !== "AbortError") count.textContent = "The registry does not answer.";
		}
	};
	input.addEventListener("input", () => {
		clearTimeout(timer);
		timer = setTimeout(search, 120);
	});
	input.focus();
	input.setSelectionRange(input.value.length, input.value.length);
}
