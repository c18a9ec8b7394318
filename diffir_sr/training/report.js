"use strict";
// A sample is a stack of two pictures: the restored one, and over its left part the one that it is compared with.
for (const sample of document.querySelectorAll(".sample")) {
  const over = sample.querySelector(".over");
  const steps = Array.from(sample.querySelectorAll(".step"));
  const at = sample.querySelector(".divider");
  const when = sample.querySelector(".when");
  const against = sample.querySelector(".against");
  const told = sample.querySelector(".told");
  const show = () => {
    const chosen = Number(when.value);
    steps.forEach((step, index) => { step.hidden = index !== chosen; });
    over.style.clipPath = "inset(0 " + (100 - Number(at.value)) + "% 0 0)";
    over.src = sample.querySelector(against.value === "gt" ? ".gt" : ".lq").src;
    told.textContent = "iteration " + steps[chosen].dataset.iteration;
  };
  for (const control of [at, when, against]) control.addEventListener("input", show);
  show();
}
