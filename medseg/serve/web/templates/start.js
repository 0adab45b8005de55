"use strict";
// The page of the service: sends a study, follows its job, and shows the report in a frame that may do nothing but run its viewer.

(function () {
  const byId = (id) => document.getElementById(id);
  const values = JSON.parse(byId("values").textContent);
  const followed = new Map(); // jobs whose events are read, with what ends the reading
  let token = "";
  let request = null;

  // The fragment of an address is not sent to servers and not kept in their logs; it is removed from the history, too.
  function tokenOfAddress() {
    const found = new URLSearchParams(location.hash.slice(1)).get("token");
    if (found) history.replaceState(null, "", location.pathname);
    return found;
  }

  function showProblem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = !text;
  }

  async function ask(path, options = {}) {
    const answer = await fetch(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } });
    if (answer.status === 401) {
      sessionStorage.removeItem("medseg-token");
      byId("work").hidden = true;
      byId("login").hidden = false;
    }
    if (!answer.ok) throw new Error(await detailOf(answer));
    return answer;
  }

  async function askFor(path, wanted) {
    const headers = { "Content-Type": "application/json" };
    return (await ask(path, { method: "POST", headers, body: JSON.stringify(wanted) })).json();
  }

  async function detailOf(answer) {
    try {
      return String((await answer.json()).detail);
    } catch {
      return `the service answered with status ${answer.status}`;
    }
  }

  function guarded(action) {
    return async (...words) => {
      try {
        showProblem("");
        await action(...words);
      } catch (error) {
        if (error.name !== "AbortError") showProblem(error.message);
      }
    };
  }

  const open = guarded(async () => {
    const models = await (await ask("api/models")).json();
    sessionStorage.setItem("medseg-token", token);
    byId("login").hidden = true;
    byId("work").hidden = false;
    byId("model").replaceChildren(...models.map((one) => new Option(one.id, one.id)));
    byId("format").replaceChildren(...values.formats.map((one) => new Option(one, one)));
    const show = () => {
      const model = models.find((one) => one.id === byId("model").value);
      byId("labels").textContent = model ? model.labels.map((one) => one.name).join(", ") : "";
    };
    byId("model").onchange = show;
    show();
    for (const job of await (await ask("api/jobs")).json()) {
      showJob(job, byId("rows").rows.length);
      if (!isFinished(job)) follow(job.id);
    }
    document.body.dataset.ready = "true";
  });

  const isFinished = (job) => job.state === "done" || job.state === "failed";

  function stateOf(job) {
    if (job.state === "queued") return job.position > 1 ? `waits, number ${job.position}` : "waits, next";
    if (job.state === "failed") return `failed: ${job.message}`;
    if (job.state === "retrieving" && job.received) return `retrieving, ${(job.received / 1e6).toFixed(1)} MB`;
    return [job.state, ...(job.stored ? ["stored on the server"] : []), ...job.notes].join(" · ");
  }

  function showJob(job, place = 0) {
    byId("jobs").hidden = false;
    let row = byId(`job-${job.id}`);
    if (!row) {
      row = byId("rows").insertRow(place);
      row.id = `job-${job.id}`;
    }
    const state = document.createElement("td");
    state.className = job.state === "failed" ? "problem" : "";
    state.textContent = stateOf(job);
    if (job.progress) {
      const bar = document.createElement("progress");
      [bar.max, bar.value] = [job.progress.total, job.progress.done];
      state.append(" ", bar);
    }
    const buttons = document.createElement("td");
    if (job.has_result) {
      buttons.append(button("view", () => view(job.id)), " ", button("download", () => download(job.id)), " ");
    }
    if (job.state === "failed" && job.has_result) buttons.append(button("store again", () => storeAgain(job.id)), " ");
    if (job.state !== "uploading") buttons.append(button("delete", () => remove(job.id)));
    row.dataset.state = job.state;
    row.replaceChildren(cell(new Date(job.created).toLocaleTimeString()), cell(job.model), state, buttons);
  }

  function cell(text) {
    const found = document.createElement("td");
    found.textContent = text;
    return found;
  }

  function button(text, action) {
    const found = document.createElement("button");
    [found.textContent, found.className, found.type] = [text, "plain", "button"];
    found.addEventListener("click", guarded(action));
    return found;
  }

  // Server-sent events, read with fetch because EventSource cannot send a token.
  async function follow(id, showResult = false) {
    const ending = new AbortController();
    followed.set(id, ending);
    try {
      const answer = await ask(`api/jobs/${id}/events`, { signal: ending.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        text += part.value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          if (!event.startsWith("event: job") || !data) continue;
          const job = JSON.parse(data.slice(6));
          showJob(job);
          if (job.state === "done" && showResult) await view(id);
        }
      }
    } catch (error) {
      if (error.name !== "AbortError") showProblem(`${error.message}. Load the page again.`);
    } finally {
      followed.delete(id);
    }
  }

  async function view(id) {
    const frame = document.createElement("iframe");
    frame.title = "report with viewer";
    frame.setAttribute("sandbox", "allow-scripts");
    const report = await (await ask(`api/jobs/${id}/report`)).text();
    frame.srcdoc = report.replace("<html", '<html data-open="viewer"'); // closed, it uncovers the report
    byId("result").replaceChildren(frame);
    byId("result").hidden = false;
    byId("result").dataset.job = id;
    frame.scrollIntoView({ block: "nearest" });
  }

  async function download(id) {
    const answer = await ask(`api/jobs/${id}/result`);
    const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") ?? "");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = name ? name[1] : "segmentation";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  async function remove(id) {
    followed.get(id)?.abort();
    await ask(`api/jobs/${id}`, { method: "DELETE" });
    byId(`job-${id}`).remove();
    if (byId("result").dataset.job === id) byId("result").hidden = true;
  }

  // What a text of the search box means; the placeholder names the forms.
  function searchOf(text) {
    if (!text) return {};
    if (/^\d{4}-\d{2}-\d{2}(\/\d{4}-\d{2}-\d{2})?$/.test(text)) return { date: text };
    return /^\d+(\.\d+)+$/.test(text) ? { study: text } : { accession: text };
  }

  const search = guarded(async () => {
    const studies = await askFor("api/dicomweb/studies", searchOf(byId("wanted").value.trim()));
    byId("found").hidden = false;
    byId("found").textContent = studies.length ? `${studies.length} found${studies.length === values.mostStudies ? ", the largest number that is listed" : ""}` : "no study found";
    byId("studies").hidden = !studies.length;
    byId("studies").tBodies[0].replaceChildren(...studies.map(studyRow));
  });

  function studyRow(study) {
    const row = document.createElement("tr");
    const buttons = cell("");
    const content = study.num_series === null ? "" : `${study.num_series} series`;
    buttons.append(button("choose", async () => {
      const series = await askFor("api/dicomweb/series", { study: study.uid });
      if (!series.length) throw new Error("The server lists no series of this study.");
      buttons.replaceChildren();
      row.after(...series.map(seriesRow));
    }));
    row.append(...[`${study.date} ${study.time}`, study.accession, study.description, study.modalities.join(", "), content].map(cell), buttons);
    return row;
  }

  function seriesRow(series) {
    const row = document.createElement("tr");
    row.className = "series";
    const buttons = cell("");
    const content = series.num_instances === null ? "" : `${series.num_instances} images`;
    buttons.append(button("predict", () => predictSeries(series)));
    row.append(...[`series ${series.number ?? ""}`, "", series.description, series.modality, content].map(cell), buttons);
    return row;
  }

  async function predictSeries(series) {
    const [store, chosen] = [byId("store").checked, byId("format").value];
    const format = store && !chosen.endsWith(".dcm") ? "seg.dcm" : chosen;
    const job = await askFor("api/dicomweb/jobs", { study: series.study, series: series.uid, model: byId("model").value, format, store });
    showJob(job);
    follow(job.id, true);
  }

  async function storeAgain(id) {
    showJob(await (await ask(`api/jobs/${id}/store`, { method: "POST" })).json());
    follow(id);
  }

  const send = guarded(async (file) => {
    if (request) throw new Error("An upload is under way. Wait for its end.");
    const form = new FormData();
    form.append("model", byId("model").value);
    form.append("format", byId("format").value);
    if (byId("series").value) form.append("series", byId("series").value);
    form.append("file", file, file.name);
    byId("sending").hidden = false;
    byId("sending-text").textContent = "sending";
    try {
      const job = await post(form);
      showJob(job);
      follow(job.id, true);
    } finally {
      request = null;
      byId("sending").hidden = true;
    }
  });

  // XMLHttpRequest, because fetch does not report how much was sent.
  function post(form) {
    return new Promise((resolve, reject) => {
      request = new XMLHttpRequest();
      request.open("POST", "api/jobs");
      request.setRequestHeader("Authorization", `Bearer ${token}`);
      request.upload.onprogress = (event) => (byId("sent").value = event.lengthComputable ? event.loaded / event.total : 0);
      request.onload = () => {
        let answer = {};
        try {
          answer = JSON.parse(request.responseText);
        } catch {
          // a proxy may have answered
        }
        if (request.status === 201) resolve(answer);
        else reject(new Error(answer.detail ?? `the service answered with status ${request.status}`));
      };
      request.onerror = () => reject(new Error("the connection to the service ended"));
      request.onabort = () => reject(new Error("the upload was cancelled"));
      request.send(form);
    });
  }

  // A folder is sent as a zip archive without compression, under numbers instead of the names of its files.
  const sendFolder = guarded(async (files) => {
    if (files.length === 1) return send(files[0]);
    byId("sending").hidden = false;
    byId("sending-text").textContent = `packing ${files.length} files`;
    try {
      await send(new File(await zipped(files), "study.zip"));
    } finally {
      byId("sending").hidden = true;
    }
  });

  const crcTable = Uint32Array.from({ length: 256 }, (_, index) => {
    let value = index;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    return value;
  });

  function crcOf(bytes) {
    let crc = 0xffffffff;
    for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
    return (crc ^ 0xffffffff) >>> 0;
  }

  function zipHeader(signature, numbers) {
    const view = new DataView(new ArrayBuffer(4 + numbers.reduce((sum, [size]) => sum + size, 0)));
    view.setUint32(0, signature, true);
    let at = 4;
    for (const [size, value] of numbers) {
      if (size === 2) view.setUint16(at, value, true);
      else view.setUint32(at, value, true);
      at += size;
    }
    return new Uint8Array(view.buffer);
  }

  async function zipped(files) {
    if (files.length > 20000) throw new Error("The folder has more than 20000 files. Choose the folder of one series.");
    const [parts, directory] = [[], []];
    let at = 0;
    for (const [index, file] of files.entries()) {
      const suffix = values.suffixes.find((one) => file.name.toLowerCase().endsWith(one)) ?? "";
      const name = new TextEncoder().encode(`${String(index).padStart(5, "0")}${suffix}`);
      const crc = crcOf(new Uint8Array(await file.arrayBuffer()));
      const shared = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc], [4, file.size], [4, file.size], [2, name.length], [2, 0]];
      const local = zipHeader(0x04034b50, shared);
      directory.push(zipHeader(0x02014b50, [[2, 20], ...shared, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]]), name);
      parts.push(local, name, file);
      at += local.length + name.length + file.size;
    }
    if (at > 0xfffffffe) throw new Error("The folder has more than 4 GB. Choose the folder of one series.");
    const size = directory.reduce((sum, one) => sum + one.length, 0);
    const end = zipHeader(0x06054b50, [[2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, at], [2, 0]]);
    return [...parts, ...directory, end];
  }

  async function filesOf(entry, found = []) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (!file.name.startsWith(".") && file.name.toUpperCase() !== "DICOMDIR") found.push(file);
      return found;
    }
    const reader = entry.createReader();
    for (;;) {
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!entries.length) return found;
      for (const one of entries) await filesOf(one, found);
    }
  }

  const dropped = guarded(async (event) => {
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const lists = await Promise.all(entries.map((entry) => filesOf(entry)));
    await sendFolder(lists.flat());
  });

  byId("login").addEventListener("submit", (event) => {
    event.preventDefault();
    token = byId("token").value.trim();
    open();
  });
  byId("search")?.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("choose-folder").addEventListener("click", () => byId("folder").click());
  for (const input of [byId("file"), byId("folder")]) {
    input.addEventListener("change", async () => {
      const files = [...input.files].filter((file) => !file.name.startsWith(".") && file.name.toUpperCase() !== "DICOMDIR");
      input.value = "";
      if (files.length) await sendFolder(files);
    });
  }
  byId("cancel").addEventListener("click", () => request?.abort());
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("drop", dropped);

  token = tokenOfAddress() ?? sessionStorage.getItem("medseg-token") ?? "";
  byId("login").hidden = Boolean(token);
  if (token) open();
})();
