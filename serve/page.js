const $ = id => document.getElementById(id);

function element(tag, name, text = "") {  // text is never read as HTML, whoever wrote it
  const made = document.createElement(tag);
  made.className = name; made.textContent = text;
  return made;
}

async function* jsonLines(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}
