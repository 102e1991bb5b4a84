// What the page says, in Chinese and English.

const WORDS = {
  title: ["Knowledge graphs from texts", "从文本到知识图谱"],
  tab_ask: ["Ask", "抽取"], tab_batch: ["Batch", "批量"], tab_graph: ["Graph", "图谱"], api: ["API", "接口"],
  language: ["中文", "English"], waiting: ["waiting", "个问题排队中"],
  text: ["Text", "文本"], topic: ["Topic", "主题"], any_topic: ["any", "不限"],
  wording: ["Wording of the question", "提问方式"],
  wording_contest: ["list of candidate relations", "候选关系列表"], wording_older: ["natural language", "自然语言"],
  relations: ["Relations to look for", "要抽取的关系"], free: ["another relation", "其他关系"], add: ["Add", "添加"],
  go: ["Extract", "抽取"], stop: ["Stop", "停止"], examples: ["Examples:", "示例："],
  found: ["What the model found", "抽取结果"], nothing_yet: ["The text and its triples appear here.", "文本和三元组会显示在这里。"],
  head: ["head", "头实体"], tail: ["tail", "尾实体"], completed: ["not in the text", "文中没有，由模型补全"],
  raw: ["The model's answer, word for word", "模型的原始回答"],
  asking: ["asking …", "正在提问……"], queued: ["waiting for a free place …", "排队等待中……"], part: ["part {0} of {1}", "第 {0} 段，共 {1} 段"],
  ended: ["{0} triples, {1} s", "{0} 个三元组，用时 {1} 秒"], stopped: ["stopped", "已停止"],
  length: ["the answer was cut at its longest length", "回答达到最大长度，被截断"], loop: ["the answer repeated itself and was ended", "回答出现重复，已提前结束"],
  no_relation: ["Choose at least one relation.", "请至少选择一个关系。"], none: ["No triple was found.", "没有找到三元组。"],
  accept: ["Right", "正确"], reject: ["Wrong", "错误"], correct: ["Correct", "修改"], save: ["Save", "保存"], cancel: ["Cancel", "取消"],
  accept_rest: ["The rest is right", "其余都正确"], add_triple: ["Add a triple", "补充三元组"], keep: ["Add to the graph", "加入图谱"],
  kept: ["It is in the graph.", "已加入图谱。"], relation: ["relation", "关系"],
  judged: ["All are judged: this text is a training record of corrections.jsonl ({0} in all).", "全部已判断：该文本已写入 corrections.jsonl（共 {0} 条训练样本）。"],
  judged_before: ["All are judged: this text is a training record of corrections.jsonl.", "全部已判断：该文本是 corrections.jsonl 中的一条训练样本。"],
  judge_hint: ["Once every triple is judged, the text becomes a training record.", "判断完所有三元组后，该文本会成为一条训练样本。"],
  upload_title: ["Answer a file of records", "批量抽取一个文件"],
  upload_hint: ["JSON or JSON lines with instruction and input; CSV with a column text; or one text a line (.txt). If the records have kg or output, the score is shown too.", "支持含 instruction 和 input 的 JSON / JSON Lines、含 text 列的 CSV，或每行一段文本的 .txt。若记录带有 kg 或 output，还会给出得分。"],
  file: ["File", "文件"], relations_without: ["Relations (for records without instruction)", "关系（用于没有 instruction 的记录）"], relations_hint: ["位于,类型,别名", "位于,类型,别名"],
  upload: ["Upload", "上传"], no_jobs: ["No jobs yet.", "还没有任务。"], records: ["records", "条记录"], triples: ["triples", "个三元组"],
  left: ["about {0} left", "大约还需 {0}"], resume: ["Go on", "继续"], remove: ["Remove", "删除"], to_graph: ["Add to the graph", "加入图谱"],
  s_waiting: ["waiting", "排队中"], s_running: ["running", "进行中"], s_finished: ["finished", "已完成"], s_failed: ["failed", "失败"], s_stopped: ["stopped", "已停止"],
  predictions: ["predictions", "预测结果"], submission: ["submission", "提交文件"], graph: ["graph (HTML)", "图谱（HTML）"], score: ["score", "得分"],
  by_relation: ["By relation", "按关系统计"], gold: ["gold", "标准"], predicted: ["predicted", "预测"], right: ["right", "正确"],
  search: ["Search", "搜索"], search_hint: ["name of an entity", "实体名称"], everything: ["Overview", "总览"],
  download: ["Download the graph:", "下载图谱："], corrections: ["Download corrections.jsonl (training records)", "下载 corrections.jsonl（训练样本）"],
  choose: ["Choose a node or an edge to see where it comes from.", "点击节点或边，查看其来源。"],
  empty: ["The graph is empty: extract something and add it.", "图谱还是空的：先抽取一段文本并加入图谱。"],
  more: ["Not all of it is shown.", "只显示了一部分。"], count: ["{0} entities, {1} triples", "{0} 个实体，{1} 个三元组"],
  sources: ["Where it comes from ({0})", "来源（{0}）"], judge: ["Judge this record", "判断这条记录"], around: ["Show what is around it", "查看周围"], run: ["run", "运行"],
};

let chinese = (localStorage.getItem("language") || navigator.language || "").startsWith("zh");
const listeners = [];

export const language = () => (chinese ? "zh" : "en");

export function say(key, ...values) {
  const text = (WORDS[key] || [key, key])[chinese ? 1 : 0];
  return values.reduce((made, value, at) => made.replace(`{${at}}`, () => value), text);
}

export function speak() {
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-hint]")) {
    element.placeholder = say(element.dataset.hint);
    element.setAttribute("aria-label", say(element.dataset.hint));
  }
  document.getElementById("language").textContent = say("language");
  document.title = say("title");
  document.documentElement.lang = language();
}

export function other() {
  chinese = !chinese;
  localStorage.setItem("language", language());
  speak();
  for (const act of listeners) act();
}

export const whenSpeaking = act => listeners.push(act);
