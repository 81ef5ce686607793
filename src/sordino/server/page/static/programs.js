// How other programs connect: for each its steps, with the values to copy.

/** A text in JSON, inside a shell's single quotes: a soft prompt's name may have any. */
const inShell = (text) => JSON.stringify(text).replaceAll("'", "'\\''");

/** Those with `chats` talk in turns, which needs a model with a chat template. here: this server's address. name: of the
 * model with its soft prompt. key: what a program gives as key. */
export const programs = ({ here, model, name, key }) => [
  {
    title: "SillyTavern, Text Completion",
    steps: [
      "API Connections, API: Text Completion.",
      "API Type: KoboldCpp, Text Generation WebUI, vLLM or Aphrodite; all work.",
      ["Server URL", here],
      "KoboldCpp and Text Generation WebUI use the server's default soft prompt.",
      ["vLLM and Aphrodite choose it by the model's name", name],
    ],
  },
  {
    title: "SillyTavern, Chat Completion",
    chats: true,
    steps: [
      "API Connections, API: Chat Completion.",
      "Chat Completion Source: Custom (OpenAI-compatible).",
      ["Custom Endpoint (Base URL)", `${here}/v1`],
      ["Model ID", name],
      "Connect.",
    ],
  },
  {
    title: "KoboldAI Lite",
    steps: [
      "AI, then AI Provider: KoboldAI API.",
      ["URL", here],
      "It uses the server's default soft prompt.",
      ["From its own site, start the server with", "sordino serve --cors-origin https://lite.koboldai.net"],
    ],
  },
  {
    title: "openai SDK",
    steps: [["Install", "pip install openai"]],
    code: `from openai import OpenAI

client = OpenAI(base_url="${here}/v1", api_key="${key}")
answer = client.completions.create(
    model=${JSON.stringify(name)}, prompt="It rained all day", max_tokens=60
)
print(answer.choices[0].text)`,
  },
  {
    title: "LangChain",
    chats: true,
    steps: [["Install", "pip install langchain-openai"]],
    code: `from langchain_openai import ChatOpenAI

chat = ChatOpenAI(base_url="${here}/v1", api_key="${key}", model=${JSON.stringify(name)})
print(chat.invoke("Describe the weather.").content)`,
  },
  {
    title: "llm (simonw)",
    chats: true,
    steps: [
      ["Install", "pip install llm"],
      "Add this to extra-openai-models.yaml, in the folder of the file that `llm logs path` names:",
    ],
    code: `- model_id: sordino
  model_name: ${name}
  api_base: ${here}/v1
  api_key_name: sordino`,
    after: [["Then", `llm keys set sordino --value ${key}`], ["And", 'llm -m sordino "Describe the weather."']],
  },
  {
    title: "curl",
    steps: [],
    code: `curl ${here}/v1/completions \\
  -H 'Content-Type: application/json' -H 'Authorization: Bearer ${key}' \\
  -d '{"model": ${inShell(name)}, "prompt": "It rained all day", "max_tokens": 60}'`,
    after: [`The model alone is ${model}.`],
  },
];
