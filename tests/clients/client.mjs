// The same by the JavaScript package: `node client.mjs whole|stream|leaves`; see clients.py.
import OpenAI from "openai";

let input = "";
for await (const part of process.stdin) input += part;
const given = JSON.parse(input);
const way = process.argv[2];
const client = new OpenAI({ baseURL: given.url, apiKey: given.key });
const messages = [];
const said = [];
for (const turn of given.turns) {
  const pictures = turn.pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  messages.push({ role: "user", content: [...pictures, { type: "text", text: turn.text }] });
  const body = { model: given.model, messages, max_tokens: given.max_tokens };
  let text = "";
  let tokens = null;
  if (way === "whole") {
    const answer = await client.chat.completions.create(body);
    text = answer.choices[0].message.content;
    tokens = answer.usage.completion_tokens;
    messages.push(answer.choices[0].message);
  } else {
    const stream = await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      tokens = chunk.usage?.completion_tokens ?? tokens;
      if (way === "leaves" && text) break;
    }
    messages.push({ role: "assistant", content: text });
    if (way === "leaves") messages.length = 0;
  }
  said.push([text, tokens]);
}
console.log(JSON.stringify(said));
