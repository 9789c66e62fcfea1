// --- A picture made on the spot: shapes of the built-in model's world, lines by free hand, or a photo to draw on.

const DRAWN = 512; // pixels
const THICK = 0.015; // of the side: a line by free hand

//   marks: what was drawn, in this order, places in fractions of the side:
//     {photo: canvas} | {ground: colour} | {line: [[x, y]], colour} | {shape, x, y, radius, colour}
function openDraw() {
  const { polygons, colours, hole } = JSON.parse(ui("#mc-world").dataset.world);
  const marks = [];
  let [tool, colour, drawing] = ["heart", "red", null];
  const canvas = make("canvas", { width: DRAWN, height: DRAWN, tabIndex: 0, ariaLabel: "Your drawing: Enter puts the chosen shape into its middle" });
  canvas.setAttribute("role", "img");
  const video = make("video", { muted: true, playsInline: true, hidden: true, ariaLabel: "What the camera sees" });
  const pen = canvas.getContext("2d");
  const choices = (names, chosen, choose, dress) => names.map((name) => {
    const button = pushButton("", () => {
      choose(name);
      for (const other of button.parentElement.children) other.ariaPressed = String(other === button);
    }, { ariaLabel: name, title: name, ariaPressed: String(name === chosen) });
    dress(button, name);
    return button;
  });
  const tools = choices([...Object.keys(polygons), "circle", "ring", "free hand"], tool, (name) => (tool = name), (button, name) => button.append(icon(name)));
  const paints = choices(Object.keys(colours), colour, (name) => (colour = name), (button, name) => button.append(make("i", { style: `background: ${colours[name]}` })));
  const photo = pushButton("Camera", camera, { hidden: !navigator.mediaDevices?.getUserMedia });
  const dialog = make("dialog", { className: "mc-panel mc-draw", ariaLabel: "Draw", onclose: () => (endCamera(), dialog.remove()) },
    make("header", {}, make("h2", { textContent: "Draw" }), pushButton("Close", () => dialog.close())),
    make("div", { className: "mc-sheet" }, canvas, video),
    make("div", { className: "mc-tools" }, ...tools), make("div", { className: "mc-paints" }, ...paints),
    make("div", { className: "mc-row" }, pushButton("Background", () => mark({ ground: colour })), pushButton("Undo", () => (marks.pop(), paint())), photo,
      pushButton("Add to the question", add, { className: "mc-first" })));

  function icon(name) {
    const small = make("canvas", { width: 48, height: 48 });
    const to = small.getContext("2d");
    to.fillStyle = to.strokeStyle = getComputedStyle(document.body).color;
    if (name === "free hand") stroke(to, [[0.1, 0.7], [0.35, 0.25], [0.6, 0.75], [0.9, 0.3]], 48, 0.09);
    else shape(to, name, 24, 24, 21);
    return small;
  }

  function shape(to, name, x, y, radius) {
    to.beginPath();
    polygons[name]?.forEach(([a, b]) => to.lineTo(x + radius * a, y + radius * b));
    for (const each of polygons[name] ? [] : name === "ring" ? [radius, radius * hole] : [radius]) {
      to.moveTo(x + each, y);
      to.arc(x, y, each, 0, 2 * Math.PI);
    }
    to.fill("evenodd");
  }

  function stroke(to, points, side, thick) {
    Object.assign(to, { lineWidth: thick * side, lineCap: "round", lineJoin: "round" });
    to.beginPath();
    for (const [x, y] of [points[0], ...points]) to.lineTo(side * x, side * y);
    to.stroke();
  }

  function paint() {
    pen.fillStyle = colours.white;
    pen.fillRect(0, 0, DRAWN, DRAWN);
    for (const one of drawing ? [...marks, drawing] : marks) {
      pen.fillStyle = pen.strokeStyle = colours[one.ground ?? one.colour];
      if (one.photo) pen.drawImage(one.photo, 0, 0);
      else if (one.ground) pen.fillRect(0, 0, DRAWN, DRAWN);
      else if (one.line) stroke(pen, one.line, DRAWN, THICK);
      else shape(pen, one.shape, DRAWN * one.x, DRAWN * one.y, DRAWN * one.radius);
    }
  }

  function mark(one) {
    marks.push(one);
    paint();
  }

  const place = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    const [x, y] = place(event);
    drawing = tool === "free hand" ? { line: [[x, y]], colour } : { shape: tool, x, y, radius: 0.17, colour };
    paint();
  };
  canvas.onpointermove = (event) => {
    if (!drawing) return;
    const [x, y] = place(event);
    if (drawing.line) drawing.line.push([x, y]);
    else drawing.radius = Math.max(0.05, Math.hypot(x - drawing.x, y - drawing.y));
    paint();
  };
  canvas.onpointerup = () => {
    if (drawing) marks.push(drawing);
    drawing = null;
  };
  canvas.onpointercancel = () => ((drawing = null), paint());
  canvas.onkeydown = ({ key }) => key === "Enter" && tool !== "free hand" && mark({ shape: tool, x: 0.5, y: 0.5, radius: 0.17, colour });

  async function camera() {
    if (video.srcObject) return take();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      await video.play();
      if (!dialog.isConnected) return endCamera();
      [video.hidden, photo.textContent] = [false, "Take the photo"];
    } catch (error) {
      endCamera();
      notice(`The camera cannot be used (${error.message}): allow it for this page, or add a picture.`);
    }
  }

  // Its middle square: the sheet is one.
  function take() {
    const side = Math.min(video.videoWidth, video.videoHeight);
    const taken = make("canvas", { width: DRAWN, height: DRAWN });
    taken.getContext("2d").drawImage(video, (video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side, side, 0, 0, DRAWN, DRAWN);
    endCamera();
    mark({ photo: taken });
  }

  function endCamera() {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    Object.assign(video, { srcObject: null, hidden: true });
    photo.textContent = "Camera";
  }

  async function add() {
    if (video.srcObject) take();
    const file = await new Promise((done) => canvas.toBlob(done));
    dialog.close();
    await attach([new File([file], "drawing.png", { type: "image/png" })]);
  }

  document.body.append(dialog);
  dialog.showModal();
  paint();
}

const PENCIL = '<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linejoin="round" aria-hidden="true"><path d="M4 20l1-5L16 4l4 4L9 19zM14 6l4 4"/></svg>';

// Beside the clip, which Gradio has in the message box.
function offerDraw() {
  const clip = ui("#mc-box .upload-button");
  if (!clip || ui("#mc-draw")) return;
  clip.after(make("button", { type: "button", id: "mc-draw", ariaLabel: "Draw, or take a photo", title: "Draw, or take a photo", innerHTML: PENCIL, onclick: openDraw }));
}
