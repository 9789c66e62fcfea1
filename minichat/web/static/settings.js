// The sampling that the browser keeps. This runs before Gradio makes the panel, and puts what was kept where Gradio looks
// for its first values: a listener that fills the panel later would take away what somebody types meanwhile.

const settings = {
  name: "minichat.settings",
  fields: (window.gradio_config?.components ?? []).filter(({ props }) => props.elem_classes?.includes("mc-setting")).map(({ props }) => props),

  // The panel's values come last among those of a request.
  keep(values) {
    localStorage.setItem(this.name, JSON.stringify(values.slice(-this.fields.length)));
  },

  // The values as they were kept, within what this model allows; null: nothing was changed.
  held() {
    try {
      const held = JSON.parse(localStorage.getItem(this.name));
      if (!Array.isArray(held) || held.length !== this.fields.length) return null;
      return held.map((value, place) => {
        const { minimum = value, maximum = value } = this.fields[place];
        return typeof value === "number" ? Math.min(maximum, Math.max(minimum, value)) : value;
      });
    } catch {
      return null;
    }
  },
};

settings.held()?.forEach((value, place) => (settings.fields[place].value = value));
