# Creates the bucket for the Terraform state of an environment. Run it once, by
# `just bootstrap ENVIRONMENT`.

terraform {
  required_version = ">= 1.9, < 2"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.21, < 9"
    }
  }

  # The state of this bucket itself is local, in ENVIRONMENT.tfstate.
  backend "local" {}
}

variable "project_id" {
  description = "ID of the environment's Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of the bucket."
  type        = string
}

variable "state_bucket" {
  description = "Name of the bucket. It must match environments/ENVIRONMENT.gcs.tfbackend."
  type        = string
}

provider "google" {
  project = var.project_id
  region  = var.region
}

resource "google_storage_bucket" "state" {
  #checkov:skip=CKV_GCP_62:Turn on Data Access audit logs if you have to prove who read the state.
  name                        = var.state_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      num_newer_versions = 20
      with_state         = "ARCHIVED"
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}
