// docs/choose.md: two questions above its tables, answered from the tables themselves. Without this, the page is whole.
const place = document.getElementById("choose");
if (place) {
  const rows = (table) => [...table.tBodies[0].rows].map((row) => [...row.cells]);
  const tables = [...document.querySelectorAll("article table")].filter((table) => table.tHead);
  const [targets, ...costs] = tables;
  const models = [...document.querySelectorAll("article h3")].map((heading) => heading.firstChild.textContent.trim());
  const devices = rows(targets).map((cells) => cells[0].textContent);

  const ask = (text, options) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.append(...options.map((option, at) => new Option(option, at)));
    label.append(text, select);
    return [label, select];
  };
  const [device, onDevice] = ask("Device", devices);
  const [model, ofModel] = ask("Model", models);
  const answer = document.createElement("div");
  answer.setAttribute("aria-live", "polite");

  const show = () => {
    const target = rows(targets)[onDevice.value];
    const table = costs[ofModel.value];
    const command = document.createElement("pre");
    command.append(document.createElement("code"));
    command.firstChild.textContent = target[1].textContent.replace("MODEL", models[ofModel.value]);
    const list = document.createElement("dl");
    const heads = [...table.tHead.rows[0].cells].slice(1);
    const cells = [["engine", target[2]], ...heads.map((head, at) => [head.textContent, rows(table)[onDevice.value][at + 1]])];
    for (const [name, cell] of cells) {
      const pair = document.createElement("div");
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      value.append(...cell.cloneNode(true).childNodes);
      pair.append(term, value);
      list.append(pair);
    }
    const why = document.createElement("p");
    why.append(...target[3].cloneNode(true).childNodes);
    answer.replaceChildren(command, list, why);
  };
  onDevice.addEventListener("change", show);
  ofModel.addEventListener("change", show);
  place.append(device, model, answer);
  show();
}
